"""What was computed before: raw scores of documents, and the vectors of queries. Both are bounded.

Of the scores the least recently used one goes first.

A raw value depends on the query, the document and how it is truncated, the model, how it is scored, and the
engine's build, precision and device, so a key is a digest of these. It is made of texts, not of ids: what is
known need not be tokenized. The model's part of it stands for the file by path, size, time of change and
header: reading gigabytes at each start to tell apart two files that agree in all of those is not worth it,
and a file that changes under a running service is refused at the next start of its engine.

An entry is a digest, a raw value, a number of tokens and whether the document was truncated, about 300 bytes
with what a dictionary takes for it, whatever the texts.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

V = TypeVar("V")

_DIGEST_BYTES = 16
_SEPARATOR = b"\0"  # texts come here without NUL (see plan.clean)
_QUERIES_KEPT = 64


class CachedScore(NamedTuple):
    """A document's raw value, the tokens that were read for it, and whether it was truncated."""

    raw: float
    tokens: int
    is_truncated: bool


class ScoreCache:
    """At most `max_entries` raw values; 0 keeps none. `model` says in any words what the values depend on
    beside the pair."""

    def __init__(self, max_entries: int, model: str) -> None:
        self.max_entries = max_entries
        self._of_model = hashlib.blake2b(model.encode("utf-8", "replace"), digest_size=_DIGEST_BYTES)
        self._model = self._of_model
        self._values: OrderedDict[bytes, CachedScore] = OrderedDict()

    def set_engine(self, engine: str) -> None:
        """Say in any words which engine computes the values from now on: its build, precision and device.
        Values of another one are not found any more."""
        digest = self._of_model.copy()
        digest.update(_SEPARATOR + engine.encode("utf-8", "replace"))
        if digest.digest() != self._model.digest():
            self._values.clear()
            self._model = digest

    def __len__(self) -> int:
        return len(self._values)

    def keys(self, question: bytes, texts: Sequence[str], truncation: str = "") -> list[bytes]:
        """The key of each document beside a question (see sequences.Question.key); none at all where the
        cache is off. `truncation` says in any words how documents are truncated."""
        if not self.max_entries:
            return []
        asked = self._model.copy()
        asked.update(_SEPARATOR.join((b"", truncation.encode(), question, b"")))
        made = []
        for text in texts:
            document = asked.copy()
            document.update(text.encode())
            made.append(document.digest())
        return made

    def get(self, key: bytes) -> CachedScore | None:
        known = self._values.get(key)
        if known is not None:
            self._values.move_to_end(key)
        return known

    def put(self, key: bytes, known: CachedScore) -> None:
        if not self.max_entries:
            return
        self._values[key] = known
        self._values.move_to_end(key)
        if len(self._values) > self.max_entries:
            self._values.popitem(last=False)


class QueryVectors(Generic[V]):
    """The vectors of the newest queries, by any bytes that stand for one: a request's query comes in several
    calls, and often comes again later. To be used from any thread."""

    def __init__(self) -> None:
        self._vectors: OrderedDict[bytes, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, query: bytes) -> V | None:
        with self._lock:
            return self._vectors.get(query)

    def put(self, query: bytes, vector: V) -> None:
        with self._lock:
            self._vectors[query] = vector
            if len(self._vectors) > _QUERIES_KEPT:
                self._vectors.popitem(last=False)
