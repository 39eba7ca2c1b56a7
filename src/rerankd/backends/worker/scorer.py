"""Scores batches of token ids: divides them into forward passes of a network, by a scoring method."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from rerankd.backends.token_vectors import KeptVectors, TokenVectors
from rerankd.backends.worker import prefixes
from rerankd.backends.worker.compute_lock import ComputeLock
from rerankd.backends.worker.images import ImageReader
from rerankd.backends.worker.late_interaction import MaxSim
from rerankd.backends.worker.methods import Cosines, Listwise, Logits, Method
from rerankd.backends.worker.passes import Pause, Pending, Reading, Vectors, never
from rerankd.backends.worker.protocol import InvalidBatch
from rerankd.errors import InputTooLong
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
        """Start a forward pass; a device may compute it while the next one is prepared. What it returns for
        each input is one row, a raw score or an embedding, or several rows, such as the states of its tokens.
        Vectors are not normalised. A pass that takes long calls `pause` between its parts. One thread at a
        time."""


def method_of(
    token_vectors: TokenVectors | None, *, returns_scores: bool, reads_blocks: bool = False
) -> Method:
    """The method of a network that returns raw scores, vectors of texts, or with `token_vectors` or
    `reads_blocks` those of tokens."""
    if token_vectors is not None:
        return MaxSim.here(token_vectors)
    if reads_blocks:
        return Listwise()
    return Logits() if returns_scores else Cosines()


class Scorer:
    """Scores batches by a method; safe to call from any thread. `lock` serializes batches and counts forward
    passes. `images` decodes the images of a model that reads some."""

    def __init__(
        self, network: Network, max_length: int, method: Method, images: ImageReader | None = None
    ) -> None:
        self.images = images
        self.about = network.about
        self.lock = ComputeLock()
        self._method = method
        self._network = network
        self._max_length = max_length

    @property
    def kept(self) -> KeptVectors | None:
        """See methods.Method."""
        return self._method.kept

    def score(self, inputs: Sequence[Input], check: Callable[[], None] = never) -> list[float]:
        """Return the raw score of each input; see `answer`."""
        return self.answer(inputs, check)[0]

    def answer(
        self, inputs: Sequence[Input], check: Callable[[], None] = never, *, anew: bool = False
    ) -> tuple[list[float], Vectors | None]:
        """Return the raw score of each input, and of a block its vectors: those of the inputs, then the
        query's. `check` runs before each forward pass; an exception from it cancels the batch. With `anew`,
        all inputs are read, whatever is kept of them.

        Raises InputTooLong, InvalidBatch, and any error of the network.
        """
        if not inputs:
            return [], None
        with self.lock.working():
            # Plan after the wait: the batch before may have computed what this one needs.
            with self.lock.held():
                plan = self._method.plan(inputs, anew=anew)
                wait = self._started(plan.readings, check)
            # The next batch starts while a device computes the last pass of this one.
            rows = wait()
            return plan.finish(rows), rows[0] if plan.is_block else None

    def embed(self, inputs: Sequence[Input], check: Callable[[], None] = never) -> Vectors:
        """Return the vector of each input, not normalised: [inputs, width]. Raises as `score` does, and
        InvalidBatch if the network computes no vectors of texts."""
        if not isinstance(self._method, Cosines):
            raise InvalidBatch("this model computes no vectors of texts")
        with self.lock.working():
            with self.lock.held():
                wait = self._started(prefixes.readings(inputs), check)
            return np.stack(wait())

    def _started(self, readings: Sequence[Reading], check: Callable[[], None]) -> Callable[[], list[Vectors]]:
        """Start all passes. The result waits for the last ones and returns what the network computes for each
        reading, in order."""
        if readings:
            self._refuse(readings)
        network, found = self._network, dict[int, Vectors]()
        running: deque[tuple[list[int], Pending]] = deque()

        def finish(most: int) -> None:
            while len(running) > most:
                places, wait = running.popleft()
                found.update(zip(places, wait(), strict=True))
                self.lock.step()

        def rest() -> list[Vectors]:
            finish(0)
            return [found[at] for at in range(len(readings))]

        def pause() -> None:
            self.lock.step()
            check()

        for places in network.passes(readings) if readings else ():
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
