"""Scores batches of token ids: a rank head's or a causal model's raw scores, or an embedding model's cosine
similarities."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from rerankd.backends.worker import prefixes
from rerankd.backends.worker.compute_lock import ComputeLock
from rerankd.backends.worker.passes import Pause, Pending, Reading, Vectors, never
from rerankd.backends.worker.protocol import InvalidBatch
from rerankd.errors import InputTooLong
from rerankd.scoring.cache import QueryVectors
from rerankd.scoring.engine_input import Input


class Network(Protocol):
    """A loaded model. `about` describes it in words. Its vocabulary has `rows` token ids. `passes_ahead`: how
    many forward passes may be started before the oldest one is waited for; 0 if `start` computes itself."""

    about: str
    rows: int
    passes_ahead: int

    def passes(self, readings: Sequence[Reading]) -> list[list[int]]:
        """Divide inputs into forward passes: the indexes of each pass."""

    def start(self, readings: Sequence[Reading], pause: Pause = never) -> Pending:
        """Start a forward pass; a device may compute it while the next one is prepared. Its rows, one per
        input, are raw scores, or embeddings that are not normalised. A pass that takes long calls `pause`
        between its parts. One thread at a time."""


class Scorer:
    """Scores batches; safe to call from any thread. With `is_cross_encoder` the model returns raw scores,
    else vectors, whose cosine is the raw score. `lock` serializes batches and counts forward passes."""

    def __init__(self, network: Network, max_length: int, *, is_cross_encoder: bool) -> None:
        self.about = network.about
        self.lock = ComputeLock()
        self._network = network
        self._max_length = max_length
        self._is_head = is_cross_encoder
        self._queries = QueryVectors[Vectors]()

    def score(self, inputs: Sequence[Input], check: Callable[[], None] = never) -> list[float]:
        """Return the raw score of each input. `check` runs before each forward pass; an exception from it
        cancels the batch.

        Raises InputTooLong, InvalidBatch, and any error of the network.
        """
        if not inputs:
            return []
        readings = prefixes.readings(inputs)
        start = self._logits if self._is_head else self._cosines
        with self.lock.working():
            # Look up query vectors after the wait: the batch before may have computed them.
            with self.lock.held():
                wait = start(inputs, readings, check)
            # The next batch starts while a device computes the last pass of this one.
            found: list[float] = wait().tolist()
            return found

    def _logits(self, inputs: Sequence[Input], readings: list[Reading], check: Callable[[], None]) -> Pending:
        wait = self._started(readings, check)
        return lambda: wait()[:, 0]

    def _cosines(
        self, inputs: Sequence[Input], readings: list[Reading], check: Callable[[], None]
    ) -> Pending:
        """Embed the inputs, and in the same batch each query whose vector is not cached."""
        keys = [one.question.ids.tobytes() for one in inputs]
        asked = {key: one.question.ids for key, one in zip(keys, inputs, strict=True)}
        known = {key: vector for key in asked if (vector := self._queries.get(key)) is not None}
        new = [key for key in asked if key not in known]
        queries = [Reading(asked[key], len(asked[key])) for key in new]
        wait = self._started([*readings, *queries], check)

        def cosines() -> Vectors:
            vectors = _unit(wait())
            for key, vector in zip(new, vectors[len(inputs) :], strict=True):
                known[key] = vector
                self._queries.put(key, vector.copy())  # a view would keep the whole batch in memory
            # One sum per row, because the result of a matrix product depends on the number of rows.
            found: Vectors = (vectors[: len(inputs)] * np.stack([known[key] for key in keys])).sum(axis=1)
            return found

        return cosines

    def _started(self, readings: Sequence[Reading], check: Callable[[], None]) -> Pending:
        """Start all passes. The result waits for the last ones and returns the network's row of each reading,
        in order."""
        self._refuse(readings)
        network, found = self._network, dict[int, Vectors]()
        running: deque[tuple[list[int], Pending]] = deque()

        def finish(most: int) -> None:
            while len(running) > most:
                places, wait = running.popleft()
                found.update(zip(places, wait(), strict=True))
                self.lock.step()

        def rest() -> Vectors:
            finish(0)
            return np.stack([found[at] for at in range(len(readings))])

        def pause() -> None:
            self.lock.step()
            check()

        for places in network.passes(readings):
            check()
            running.append((places, network.start([readings[at] for at in places], pause)))
            finish(network.passes_ahead)
        return rest

    def _refuse(self, readings: Sequence[Reading]) -> None:
        """Reject inputs that the model can't compute."""
        lengths = [len(one.ids) for one in readings]
        if max(lengths) > self._max_length:
            raise InputTooLong(f"an input has {max(lengths)} tokens, and max_length is {self._max_length}")
        if not min(lengths):
            raise InvalidBatch("an input or a query has no tokens")
        # Seen as unsigned, negative ids are large.
        largest = np.concatenate([one.ids for one in readings]).view(np.uint32).max()
        if largest >= self._network.rows:
            raise InvalidBatch(f"a token id is outside the model's vocabulary of {self._network.rows}")


def _unit(rows: Vectors) -> Vectors:
    """Scale each row to length 1."""
    scaled: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return scaled
