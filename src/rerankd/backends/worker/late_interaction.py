"""Late interaction: MaxSim of the vectors of a query's and a document's tokens, and vectors that are kept.

A document's vectors depend on its token ids alone, so those of recent documents are kept, up to a number of
bytes. A document that was read before costs its MaxSim, for any query. With a VectorFile, they are kept on
disk, too, as they were computed: a score does not depend on where its vectors were.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np

from rerankd.backends.token_vectors import VECTOR_SPARES_S, KeptVectors, TokenVectors, VectorFile
from rerankd.backends.worker.methods import Plan, unit
from rerankd.backends.worker.passes import Reading, Vectors
from rerankd.disk_cache import DiskCache
from rerankd.scoring.engine_input import Ids, Input

# What a kept document takes besides its numbers: key, array, and the dictionary's entry.
_OVERHEAD_BYTES = 256
# One request sends its query in several calls, and clients often repeat a query.
_QUERIES_BYTES = 16 * 2**20
# The numbers of a vector; then the vectors, as float32.
_WIDTH = struct.Struct("<I")


class VectorCache:
    """The vectors of recently used texts, by a digest of their token ids, up to `most_bytes` in total.
    Thread-safe."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[bytes, Vectors] = OrderedDict()
        self._lock = threading.Lock()
        self._kept = KeptVectors()

    @property
    def kept(self) -> KeptVectors:
        with self._lock:
            return replace(self._kept, documents=len(self._held))

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """The vectors of those texts that are kept. Each key counts as a hit or a miss."""
        with self._lock:
            found = {key: self._held[key] for key in keys if key in self._held}
            for key in found:
                self._held.move_to_end(key)
            hits = sum(key in found for key in keys)
            self._kept = replace(
                self._kept, hits=self._kept.hits + hits, misses=self._kept.misses + len(keys) - hits
            )
        return found

    def put(self, key: bytes, vectors: Vectors) -> None:
        """Keep the vectors of a text, and drop those that were not used for the longest time."""
        size = _size(vectors)
        if size > self._most_bytes:
            return
        with self._lock:
            if key not in self._held:
                size += self._kept.size_bytes
                self._held[key] = vectors
                while size > self._most_bytes:
                    size -= _size(self._held.popitem(last=False)[1])
                self._kept = replace(self._kept, size_bytes=size)


class VectorDisk:
    """The vectors of documents on disk, by the keys of VectorCache."""

    def __init__(self, file: VectorFile) -> None:
        self._identity = bytes.fromhex(file.identity)
        self._disk = DiskCache(Path(file.path), file.most_bytes, file.ttl_s, VECTOR_SPARES_S)
        self._disk.start()

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """The vectors of those texts that are known. Waits for the disk no longer than a request does."""
        own = {self._key(key): key for key in keys}
        reading = self._disk.find([*own])
        try:
            values = reading.result(self._disk.wait_s(len(own)))
        except (TimeoutError, CancelledError):
            reading.cancel()
            return {}
        found = {}
        for key, value in values.items():
            (width,) = _WIDTH.unpack_from(value)
            found[own[key]] = np.frombuffer(value, np.float32, offset=_WIDTH.size).reshape(-1, width)
        return found

    def put(self, key: bytes, vectors: Vectors) -> None:
        self._disk.put(self._key(key), _WIDTH.pack(vectors.shape[1]) + vectors.tobytes())

    def _key(self, key: bytes) -> bytes:
        return hashlib.blake2b(self._identity + key, digest_size=16).digest()


class MaxSim:
    """See methods.Method. The network returns a row for each token."""

    def __init__(self, how: TokenVectors, disk: VectorDisk | None = None) -> None:
        self._how = how
        self._skiplist = np.array(how.skiplist, np.int32)
        self._documents = VectorCache(how.most_bytes)
        self._disk, self._disk_hits = disk, 0
        self._queries = VectorCache(_QUERIES_BYTES)

    @classmethod
    def here(cls, how: TokenVectors) -> MaxSim:
        """The method of this worker program, with the vectors on disk that the service gave it."""
        file = VectorFile.of_environment(os.environ)
        return cls(how, VectorDisk(file) if file is not None else None)

    @property
    def kept(self) -> KeptVectors:
        found, on_disk = self._documents.kept, self._disk_hits
        return replace(found, hits=found.hits + on_disk, misses=found.misses - on_disk, disk_hits=on_disk)

    def plan(self, inputs: Sequence[Input], *, anew: bool = False) -> Plan:
        texts = [one.whole for one in inputs]
        keys = list(map(_key, texts))
        known = {} if anew else self._known(keys)
        unread = {key: ids for key, ids in zip(keys, texts, strict=True) if key not in known}
        asking = [_key(one.question.ids) for one in inputs]
        asked = {key: one.question.ids for key, one in zip(asking, inputs, strict=True)}
        queries = self._queries.find([*asked])
        new = [key for key in asked if key not in queries]

        def scores(rows: Sequence[Vectors]) -> list[float]:
            for (key, ids), states in zip(unread.items(), rows, strict=False):
                known[key] = unit(states[~np.isin(ids, self._skiplist)])
                if not anew:
                    self._documents.put(key, known[key])
                    if self._disk is not None:
                        self._disk.put(key, known[key])
            for key, states in zip(new, rows[len(unread) :], strict=True):
                queries[key] = unit(states)
                self._queries.put(key, queries[key])
            return [
                max_sim(queries[query], known[document]) for query, document in zip(asking, keys, strict=True)
            ]

        documents = [Reading(ids, len(ids)) for ids in unread.values()]
        return Plan([*documents, *(self._query(asked[key]) for key in new)], scores)

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, Vectors]:
        """The vectors of documents that are kept in memory or on disk."""
        known = self._documents.find(keys)
        missing = [key for key in keys if key not in known]
        if self._disk is not None and missing:
            found = self._disk.find(missing)
            for key, vectors in found.items():
                self._documents.put(key, vectors)
            self._disk_hits += sum(key in found for key in missing)
            known |= found
        return known

    def _query(self, ids: Ids) -> Reading:
        """A query, filled up with the expansion token."""
        missing = max(self._how.expansion_length - len(ids), 0)
        filled = np.concatenate((ids, np.full(missing, self._how.expansion_id, np.int32)))
        is_seen = self._how.attends_to_expansion or not missing
        return Reading(filled, len(filled), attended=None if is_seen else len(ids))


def max_sim(query: Vectors, document: Vectors) -> float:
    """The sum over the query's vectors [n, width] of the largest dot product with one of the document's."""
    if not len(document):  # all of its tokens are in the skiplist
        return 0.0
    # One product for each document, because its result depends on the number of rows.
    return float((document @ query.T).max(axis=0).sum())


def _key(ids: Ids) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


def _size(vectors: Vectors) -> int:
    return vectors.nbytes + _OVERHEAD_BYTES
