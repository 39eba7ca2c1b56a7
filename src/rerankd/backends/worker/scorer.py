"""Batches of ids -> raw values: a cross-encoder's logits, or the cosines of an embedding model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.worker.passes import Integers, Reading, cut, padded
from rerankd.backends.worker.protocol import InvalidBatch
from rerankd.backends.worker.turn import Turn
from rerankd.errors import InputTooLong
from rerankd.scoring.cache import QueryVectors
from rerankd.scoring.engine_input import Input

Vectors = NDArray[np.float32]


class Network(Protocol):
    """A model that is loaded. `about` says what computes, in words; ids are below `rows`. A pass is best with
    `tokens_a_pass`, padding included."""

    about: str
    rows: int
    tokens_a_pass: int

    def whole(self, count: int, longest: int) -> int:
        """See passes.Whole."""

    def forward(self, ids: Integers, lengths: Integers, seconds: Integers) -> Vectors:
        """See passes.Forward. One thread at a time."""


def _never() -> None:
    """Whoever asked waits to the end."""


class Scorer:
    """What the worker does, from any thread. `is_head` says that the values are the model's, else they are
    cosines of its vectors. `turn` shows its work."""

    def __init__(self, network: Network, max_length: int, *, is_head: bool) -> None:
        self.about = network.about
        self.turn = Turn()
        self._network = network
        self._max_length = max_length
        self._is_head = is_head
        self._queries = QueryVectors[Vectors]()

    def score(self, inputs: Sequence[Input], check: Callable[[], None] = _never) -> list[float]:
        """The raw value of each input. `check` is called before each pass; what it raises ends the
        computation.

        Raises InputTooLong, InvalidBatch, and whatever the network raises.
        """
        if not inputs:
            return []
        readings = [_reading(one) for one in inputs]
        # A batch that waits may find its queries' vectors, which the one before has computed.
        with self.turn.taken():
            values = (
                self._logits(readings, check) if self._is_head else self._cosines(inputs, readings, check)
            )
        found: list[float] = values.tolist()
        return found

    def _logits(self, readings: list[Reading], check: Callable[[], None]) -> Vectors:
        return self._computed(readings, check)[:, 0]

    def _cosines(
        self, inputs: Sequence[Input], readings: list[Reading], check: Callable[[], None]
    ) -> Vectors:
        """The query of each question is computed beside its documents, where its vector is not kept."""
        keys = [one.question.ids.tobytes() for one in inputs]
        asked = {key: one.question.ids for key, one in zip(keys, inputs, strict=True)}
        known = {key: vector for key in asked if (vector := self._queries.get(key)) is not None}
        new = [key for key in asked if key not in known]
        queries = [Reading(asked[key], len(asked[key])) for key in new]
        vectors = _unit(self._computed([*readings, *queries], check))
        for key, vector in zip(new, vectors[len(inputs) :], strict=True):
            known[key] = vector
            self._queries.put(key, vector.copy())  # a row would keep the whole batch
        # A sum for each row: those of a matrix product depend on how many rows it has.
        found: Vectors = (vectors[: len(inputs)] * np.stack([known[key] for key in keys])).sum(axis=1)
        return found

    def _computed(self, readings: Sequence[Reading], check: Callable[[], None]) -> Vectors:
        """The network's row for each reading."""
        lengths = [len(one.ids) for one in readings]
        self._refuse(readings, lengths)
        network, found = self._network, dict[int, Vectors]()
        for places in cut(lengths, network.tokens_a_pass, network.whole):
            check()
            rows = network.forward(*padded([readings[at] for at in places]))
            found.update(zip(places, rows, strict=True))
            self.turn.step()
        return np.stack([found[at] for at in range(len(readings))])

    def _refuse(self, readings: Sequence[Reading], lengths: Sequence[int]) -> None:
        """Raise for what the model can't read."""
        if max(lengths) > self._max_length:
            raise InputTooLong(f"an input has {max(lengths)} tokens, and max_length is {self._max_length}")
        if not min(lengths):
            raise InvalidBatch("an input, or a query, has no tokens")
        # As unsigned numbers, negative ones are large.
        largest = np.concatenate([one.ids for one in readings]).view(np.uint32).max()
        if largest >= self._network.rows:
            raise InvalidBatch(f"an id is outside the {self._network.rows} of the model")


def _reading(one: Input) -> Reading:
    ids = one.whole
    second = one.question.second
    return Reading(ids, len(ids) if second is None else second)


def _unit(rows: Vectors) -> Vectors:
    """Rows of length 1."""
    scaled: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return scaled
