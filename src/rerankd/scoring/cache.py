"""The score cache and its cache keys, and the vectors of recent queries. Both are bounded.

The score cache evicts the least recently used score.

A raw score depends on the query, the document and its truncation, the model and its recipe, and the engine's
build, precision and device. A cache key is a digest of all of them. It contains texts rather than token ids,
so a cached text needs no tokenization. In memory alone, the model file is identified by path, size,
modification time and header: a file that changes while rerankd runs is refused at the next start of its
engine. Entries that outlive the process need more (see serving/content_identity.py).

An entry holds a digest, a raw score, a token count and a flag: about 300 bytes including the dictionary's
overhead, whatever the length of the texts.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from rerankd.content import Content

V = TypeVar("V")

_DIGEST_BYTES = 16
_SEPARATOR = b"\0"  # texts contain no NUL here (see deduplicate.clean)
_QUERIES_KEPT = 64
# A key, a digest, and the objects of an entry of the vector cache.
_ENTRY_BYTES = 400


class CachedScore(NamedTuple):
    """The raw score of a document, the number of tokens read for it, and whether it was truncated."""

    raw: float
    tokens: int
    is_truncated: bool


class CachedVector(NamedTuple):
    """The vector of a text, the number of tokens read for it, and whether it was truncated."""

    vector: Any
    tokens: int
    is_truncated: bool


class VectorCache:
    """Vectors of texts, by the cache's keys, up to `max_bytes`; the least recently used is evicted."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.held_bytes = 0
        self._values: OrderedDict[bytes, CachedVector] = OrderedDict()

    def clear(self) -> None:
        self._values.clear()
        self.held_bytes = 0

    def get(self, key: bytes) -> CachedVector | None:
        known = self._values.get(key)
        if known is not None:
            self._values.move_to_end(key)
        return known

    def put(self, key: bytes, vector: Any, tokens: int, *, is_truncated: bool) -> CachedVector:
        """Keep a vector, and return it."""
        # A copy, because a view would keep the whole batch in memory.
        new = CachedVector(vector.copy(), tokens, is_truncated)
        if key in self._values:
            self.held_bytes -= _vector_bytes(self._values.pop(key))
        self._values[key] = new
        self.held_bytes += _vector_bytes(new)
        while self.held_bytes > self.max_bytes:
            self.held_bytes -= _vector_bytes(self._values.popitem(last=False)[1])
        return new


def _vector_bytes(entry: CachedVector) -> int:
    return int(entry.vector.nbytes) + _ENTRY_BYTES


class ScoreCache:
    """Up to `max_entries` raw scores, or none for 0, and vectors of up to `vector_bytes`. `model` is a string
    that identifies everything the scores depend on besides the texts and the engine."""

    def __init__(self, max_entries: int, model: str, vector_bytes: int = 0) -> None:
        self.max_entries = max_entries
        self.vectors = VectorCache(vector_bytes)
        self.set_model(model)
        self._model = self._of_model
        self._values: OrderedDict[bytes, CachedScore] = OrderedDict()

    @property
    def is_enabled(self) -> bool:
        """Whether scores are kept."""
        return bool(self.max_entries)

    def set_model(self, model: str) -> None:
        """Identify the model by another string, from the next `set_engine` on."""
        self._of_model = hashlib.blake2b(model.encode("utf-8", "replace"), digest_size=_DIGEST_BYTES)

    def set_engine(self, engine: str) -> None:
        """Set the engine that computes scores from now on, as a string that identifies its build, precision
        and device. A different engine empties the cache."""
        digest = self._of_model.copy()
        digest.update(_SEPARATOR + engine.encode("utf-8", "replace"))
        if digest.digest() != self._model.digest():
            self._values.clear()
            self.vectors.clear()
            self._model = digest

    def __len__(self) -> int:
        return len(self._values)

    def keys(self, question: bytes, texts: Sequence[Content], truncation: str = "") -> list[bytes]:
        """The cache key of each document for a question (see engine_input.Question.key), or an empty list if
        the cache is disabled. `truncation` is a string that identifies how documents are truncated."""
        return self.digests(question, texts, truncation) if self.is_enabled else []

    def digests(self, question: bytes, texts: Sequence[Content], truncation: str = "") -> list[bytes]:
        """The same keys, whether or not the cache is disabled."""
        common = self._model.copy()
        common.update(_SEPARATOR.join((b"", truncation.encode(), question, b"")))
        keys = []
        for text in texts:
            document = common.copy()
            document.update(text.encode() if isinstance(text, str) else text.key)
            keys.append(document.digest())
        return keys

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
    """The vectors of the most recent queries, by any bytes that identify a query. One request sends its query
    in several calls, and clients often repeat a query. Thread-safe."""

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
