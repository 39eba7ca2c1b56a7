"""Texts -> raw values: a cross-encoder's logits, or the cosines of an embedding model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.worker.runner import Integers, Job, Runner
from rerankd.formats.tokenizer import Reading, Vocabulary
from rerankd.scoring.cache import QueryVectors

Vectors = NDArray[np.float32]


class TextTooLong(ValueError):
    """A text, or a pair, has more tokens than the window."""


class Network(Protocol):
    """A model that is loaded. A call of `forward` is best with `tokens_a_call`, and with `whole` of the texts
    that wait; `about` says what computes, in words."""

    vocabulary: Vocabulary
    about: str
    tokens_a_call: int

    def whole(self, count: int, longest: int) -> int:
        """How many of `count` texts go into one call, given the longest one's tokens."""

    def forward(self, ids: Integers, lengths: Integers, seconds: Integers) -> Vectors:
        """See runner.Forward."""


class Scorer:
    """What the worker does, from any thread. `is_head` says that pairs are read, else single texts."""

    def __init__(self, network: Network, max_length: int, *, is_head: bool) -> None:
        self.vocabulary = network.vocabulary
        self.runner = Runner(network.forward, network.tokens_a_call, network.whole)
        self._about = network.about
        self._window = max_length
        self._is_head = is_head
        self._queries = QueryVectors[Vectors]()

    def info(self) -> dict[str, Any]:
        """What the service has to know of this worker."""
        return {
            "about": self._about,
            "around_pair": self.vocabulary.around_pair,
            "around_text": self.vocabulary.around_text,
            "window": self._window,
        }

    def read(self, query: str, text: str) -> list[Any]:
        """The ids that the model reads: of the pair, or of the query and of the text."""
        first, second = self.vocabulary.ids([query, text])
        if self._is_head:
            return self.vocabulary.pair(first, second).ids
        return [self.vocabulary.text(ids).ids for ids in (first, second)]

    def score(self, query: str, texts: Sequence[str], wait: Callable[[Job], None]) -> tuple[list[float], int]:
        """Raw values in order, and the tokens read for them. `wait` returns when a job is done.

        Raises TextTooLong, and whatever the network raises.
        """
        if not texts:
            return [], 0
        return self._logits(query, texts, wait) if self._is_head else self._cosines(query, texts, wait)

    def _logits(
        self, query: str, texts: Sequence[str], wait: Callable[[Job], None]
    ) -> tuple[list[float], int]:
        asked, *found = self.vocabulary.ids([query, *texts])
        pairs = [self.vocabulary.pair(asked, ids) for ids in found]
        return [float(value) for value in self._run(pairs, query, wait)[:, 0]], _tokens(pairs)

    def _cosines(
        self, query: str, texts: Sequence[str], wait: Callable[[Job], None]
    ) -> tuple[list[float], int]:
        known = self._queries.get(query)
        inputs = [*texts] if known is not None else [query, *texts]
        rows = [self.vocabulary.text(ids) for ids in self.vocabulary.ids(inputs)]
        vectors = _unit(self._run(rows, query, wait))
        if known is None:
            known, vectors = vectors[0], vectors[1:]
            self._queries.put(query, known)
        return [float(value) for value in vectors @ known], _tokens(rows)

    def _run(self, rows: list[Reading], query: str, wait: Callable[[Job], None]) -> Vectors:
        longest = max(len(row.ids) for row in rows)
        if longest > self._window:
            raise TextTooLong(f"a text has {longest} tokens, and the window is {self._window}")
        job = self.runner.submit(rows, owner=query)
        try:
            wait(job)
        finally:
            self.runner.drop(job)
        return job.result.result()


def _tokens(rows: Sequence[Reading]) -> int:
    return sum(len(row.ids) for row in rows)


def _unit(rows: Vectors) -> Vectors:
    """Rows of length 1."""
    scaled: Vectors = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return scaled
