"""How a worker turns a network's rows into raw scores: one class per scoring method.

A method says which readings a batch needs, and computes the raw scores from their rows. So it can leave out
what it knows from an earlier batch, and add what the inputs share: their query.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from rerankd.backends.token_vectors import KeptVectors
from rerankd.backends.worker import prefixes
from rerankd.backends.worker.passes import Reading, Vectors
from rerankd.backends.worker.protocol import InvalidBatch
from rerankd.scoring.block_scores import Block, cosines
from rerankd.scoring.cache import QueryVectors
from rerankd.scoring.engine_input import Input


class Plan(NamedTuple):
    """What a batch needs. `finish` turns the network's rows of `readings`, in order, into the raw score of
    each input; it may run while the next batch is planned. `is_block`: the only reading is a block of
    documents, and its rows are returned, too."""

    readings: Sequence[Reading]
    finish: Callable[[Sequence[Vectors]], list[float]]
    is_block: bool = False


class Method(Protocol):
    """A scoring method. `plan` is called by one thread at a time. `kept`: the document vectors that it keeps
    between batches; None if it keeps none. With `anew`, a plan neither uses these nor adds to them."""

    @property
    def kept(self) -> KeptVectors | None: ...

    def plan(self, inputs: Sequence[Input], *, anew: bool = False) -> Plan: ...


class Logits:
    """The network's row of an input is its raw score."""

    kept = None

    def plan(self, inputs: Sequence[Input], *, anew: bool = False) -> Plan:
        return Plan(prefixes.readings(inputs), lambda rows: np.stack(rows)[:, 0].tolist())


class Cosines:
    """The raw score is the cosine of the rows of the input and of its query, which is read on its own."""

    kept = None

    def __init__(self) -> None:
        self._queries = QueryVectors[Vectors]()

    def plan(self, inputs: Sequence[Input], *, anew: bool = False) -> Plan:
        keys = [one.question.ids.tobytes() for one in inputs]
        asked = {key: one.question.ids for key, one in zip(keys, inputs, strict=True)}
        known = {key: vector for key in asked if (vector := self._queries.get(key)) is not None}
        new = [key for key in asked if key not in known]

        def cosines(rows: Sequence[Vectors]) -> list[float]:
            vectors = unit(np.stack(rows))
            for key, vector in zip(new, vectors[len(inputs) :], strict=True):
                known[key] = vector
                self._queries.put(key, vector.copy())  # a view would keep the whole batch in memory
            # One sum per row, because the result of a matrix product depends on the number of rows.
            found: list[float] = (
                (vectors[: len(inputs)] * np.stack([known[key] for key in keys])).sum(axis=1).tolist()
            )
            return found

        queries = [Reading(asked[key], len(asked[key])) for key in new]
        return Plan([*prefixes.readings(inputs), *queries], cosines)


class Listwise:
    """The inputs of a batch are one block, which the model reads at once. The states of the last token of
    each input and of the last token of their question become vectors; the raw score is their cosine."""

    kept = None

    def plan(self, inputs: Sequence[Input], *, anew: bool = False) -> Plan:
        question = inputs[0].question
        if any(one.question is not question for one in inputs):
            raise InvalidBatch("a block has more than one question")
        ids = np.concatenate((question.before, *(one.ids for one in inputs), question.after))
        ends = len(question.before) + np.cumsum([len(one.ids) for one in inputs])
        wanted = np.append(ends, len(ids)).astype(np.int32) - 1
        return Plan([Reading(ids, len(ids), wanted=wanted)], lambda rows: cosines(block(rows[0])), True)


def block(rows: Vectors) -> Block:
    """The vectors of a block from the network's rows: the documents', then the query's."""
    return Block(rows[:-1], rows[-1])


def unit(rows: Vectors) -> Vectors:
    """Scale each row to length 1."""
    scaled: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return scaled
