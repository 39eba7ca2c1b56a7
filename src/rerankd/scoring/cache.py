"""What was computed before: raw scores of pairs, and the vectors of queries. Both are bounded.

Of the scores the least recently used one goes first.

A raw value depends on the pair, the model, how it is scored, and the engine's build, precision and device, so
a key is a digest of these. The model's part of it stands for the file by path, size, time of change and
header: reading gigabytes at each start to tell apart two files that agree in all of those is not worth it,
and a file that changes under a running service is refused at the next start of its engine.

An entry is a digest, a raw value and a number of tokens, about 300 bytes with what a dictionary takes for it,
whatever the texts.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, TypeVar

V = TypeVar("V")

_DIGEST_BYTES = 16
_SEPARATOR = b"\0"  # texts come here without NUL (see plan.clean)
_QUERIES_KEPT = 64


class ScoreCache:
    """At most `most_entries` raw values; 0 keeps none. `model` says in any words what the values depend on
    beside the pair."""

    def __init__(self, most_entries: int, model: str) -> None:
        self.most_entries = most_entries
        self._of_model = hashlib.blake2b(model.encode("utf-8", "replace"), digest_size=_DIGEST_BYTES)
        self._model = self._of_model
        self._values: OrderedDict[bytes, tuple[float, int]] = OrderedDict()

    def computed_by(self, engine: str) -> None:
        """Say in any words which engine computes the values from now on: its build, precision and device.
        Values of another one are not found any more."""
        digest = self._of_model.copy()
        digest.update(_SEPARATOR + engine.encode("utf-8", "replace"))
        if digest.digest() != self._model.digest():
            self._values.clear()
            self._model = digest

    def __len__(self) -> int:
        return len(self._values)

    def keys(self, query: str, instruction: str, texts: Sequence[str]) -> list[bytes]:
        """The key of each text; none at all where the cache is off."""
        if not self.most_entries:
            return []
        question = self._model.copy()
        question.update(_SEPARATOR.join((b"", instruction.encode(), query.encode(), b"")))
        made = []
        for text in texts:
            pair = question.copy()
            pair.update(text.encode())
            made.append(pair.digest())
        return made

    def get(self, key: bytes) -> tuple[float, int] | None:
        """The raw value, and the tokens that were read for it."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: bytes, value: float, tokens: int) -> None:
        if not self.most_entries:
            return
        self._values[key] = (value, tokens)
        self._values.move_to_end(key)
        if len(self._values) > self.most_entries:
            self._values.popitem(last=False)


class QueryVectors(Generic[V]):
    """The vectors of the newest queries: one request's query comes in several calls, and often comes again
    later. To be used from any thread."""

    def __init__(self) -> None:
        self._vectors: OrderedDict[str, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, query: str) -> V | None:
        with self._lock:
            return self._vectors.get(query)

    def put(self, query: str, vector: V) -> None:
        with self._lock:
            self._vectors[query] = vector
            if len(self._vectors) > _QUERIES_KEPT:
                self._vectors.popitem(last=False)
