"""One file of the cache on disk: byte strings by 16-byte keys, in an SQLite database in WAL mode.

SQLite, because it is in the standard library and survives a kill in the middle of a write. LMDB maps its file
into memory, so a truncated file kills the process, and diskcache is SQLite with pickled values.

- Row ids grow with each write, so the rows with the smallest ids are the oldest. A row that is read and is
  among the older half gets a new id. Eviction deletes from the smallest id on: approximately the least
  recently used.
- Each row has a checksum of its key and value. A row that fails it is not returned.
- The database, its write-ahead log and its index file together stay below `most_bytes`.
- SQLite maps the index file of the log, *-shm, into memory. If another program truncates it, the next access
  would kill the process (SIGBUS), so its size is checked before each operation. SQLite rebuilds an index of
  zeros from the log.

A connection belongs to the thread that uses it. Several processes may use the same file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rerankd import locks
from rerankd.cache_database import LOCK_S, LOG_BYTES, PAGE_BYTES, SUFFIXES, connect, identity_of, number

LEAST_BYTES = 32 * 2**20
"""The smallest bound that leaves room for the write-ahead log."""

# One transaction changes up to so many rows and bytes of values, so that the log stays small: each row
# changes up to two pages.
_MOST_ROWS = 512
_MOST_BATCH_BYTES = 2**20
# How much of the bound is left to the log: its size, a batch beyond it, and the largest value.
_LARGEST = 16  # the largest value, as a fraction of the bound
_RESERVE_BYTES = 12 * 2**20
# Eviction frees this fraction of the bound at a time.
_FREED = 1 / 32
_KEYS_A_QUERY = 500


class CacheFile:
    """A connection to a prepared file. All methods raise sqlite3.Error and OSError."""

    def __init__(self, path: Path, most_bytes: int, ttl_s: float) -> None:
        """`most_bytes` is at least LEAST_BYTES. Values are not returned `ttl_s` seconds after they were
        written; 0 for no limit."""
        self.largest_value = most_bytes // _LARGEST
        self._path, self._most_bytes, self._ttl_s = path, most_bytes, ttl_s
        with locks.held_soon(path.parent, LOCK_S):
            found = identity_of(path)
            if found is None:
                raise FileNotFoundError(f"{path} is missing")
            self.identity = found
            self._database = connect(path)
            number(self._database, "schema_version")  # open all files now
        self._index, self._index_bytes = Path(f"{path}-shm"), 0
        self._mend_index()

    def close(self) -> None:
        self._mend_index()
        self._database.close()

    def _mend_index(self) -> None:
        """Make the index file as large as it was, if it was truncated. Not by an open file: closing it would
        end SQLite's locks of this process."""
        size = _size(self._index)
        if size < self._index_bytes and self._index.exists():
            os.truncate(self._index, 0)  # what is left of it does not fit to what is lost
            os.truncate(self._index, self._index_bytes)
        self._index_bytes = max(size, self._index_bytes)

    def is_replaced(self) -> bool:
        """Whether the path names another file by now, or none."""
        return identity_of(self._path) != self.identity

    def size_bytes(self) -> int:
        """The bytes of the database and the files beside it."""
        return sum(_size(Path(f"{self._path}{suffix}")) for suffix in SUFFIXES)

    def read(self, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """The values of the keys that are known, and which of these keys were not used for so long that they
        should be written again (see `write`)."""
        found: dict[bytes, bytes] = {}
        old: list[bytes] = []
        self._mend_index()
        oldest = 0 if self._ttl_s <= 0 else int(time.time() - self._ttl_s)
        middle = self._middle()
        for start in range(0, len(keys), _KEYS_A_QUERY):
            part = keys[start : start + _KEYS_A_QUERY]
            marks = ",".join("?" * len(part))
            rows = self._database.execute(
                f"SELECT id, key, checksum, value FROM entries WHERE key IN ({marks}) AND at >= ?",
                (*part, oldest),
            )
            for row, key, checksum, value in rows:
                if checksum == _checksum(key, value):
                    found[key] = value
                    if row < middle:
                        old.append(key)
        return found, old

    def write(self, values: Mapping[bytes, bytes], used: Iterable[bytes] = ()) -> None:
        """Write values, and mark the keys `used` as recently used. Evicts old rows first if necessary."""
        now = int(time.time())
        for rows in _batches(values):
            self.make_room()
            with self._transaction() as run:
                run.executemany(
                    "INSERT OR REPLACE INTO entries (key, at, checksum, value) VALUES (?, ?, ?, ?)",
                    [(key, now, _checksum(key, value), value) for key, value in rows],
                )
        touched = [key for key in used if key not in values]
        for start in range(0, len(touched), _MOST_ROWS):
            self.make_room()
            with self._transaction() as run:
                run.executemany(
                    "UPDATE entries SET id = (SELECT max(id) + 1 FROM entries) WHERE key = ?",
                    [(key,) for key in touched[start : start + _MOST_ROWS]],
                )

    def _middle(self) -> int:
        """The id below which rows count as old; 0 while half of the space is free, because nothing will be
        evicted soon."""
        if number(self._database, "page_count") * PAGE_BYTES < self._limit_bytes // 2:
            return 0
        first, last = self._database.execute(
            "SELECT (SELECT min(id) FROM entries), (SELECT max(id) FROM entries)"
        ).fetchone()
        return 0 if first is None else (first + last) // 2

    @property
    def _limit_bytes(self) -> int:
        """The bound of the database alone."""
        return self._most_bytes - _RESERVE_BYTES - self.largest_value

    def make_room(self) -> None:
        """Keep log and database within their bounds, evicting rows if necessary. Raises
        sqlite3.OperationalError if the log can't be shortened, because a reader holds it."""
        self._shorten_log()
        if self._used_bytes() > self._limit_bytes:
            goal = self._limit_bytes - int(self._most_bytes * _FREED)
            while self._used_bytes() > goal and self._evict():
                self._shorten_log()
        while number(self._database, "page_count") * PAGE_BYTES > self._limit_bytes:
            # `execute` would take one step, which frees one page.
            self._database.executescript("PRAGMA incremental_vacuum(1024)")
            self._shorten_log(0)

    def _used_bytes(self) -> int:
        pages = number(self._database, "page_count") - number(self._database, "freelist_count")
        return pages * PAGE_BYTES

    def _evict(self) -> bool:
        """Delete the oldest rows, in one transaction. Returns whether there were any."""
        oldest = "SELECT id, length(value) FROM entries ORDER BY id LIMIT ?"
        last, freed = None, 0
        for row, size in self._database.execute(oldest, (_MOST_ROWS,)):
            if last is not None and freed + size > _MOST_BATCH_BYTES:
                break
            last, freed = row, freed + size
        if last is None:
            return False
        with self._transaction() as run:
            run.execute("DELETE FROM entries WHERE id <= ?", (last,))
        return True

    def _shorten_log(self, most_bytes: int = LOG_BYTES) -> None:
        """Copy the log into the database if it has more bytes. The database shrinks only then."""
        self._mend_index()
        log = Path(f"{self._path}-wal")
        if _size(log) > most_bytes:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if _size(log) > LOG_BYTES + self.largest_value:
                raise sqlite3.OperationalError("its write-ahead log is in use and can't be shortened")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._mend_index()
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
            self._database.execute("COMMIT")
            self._mend_index()  # it may have grown
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            raise


def _batches(values: Mapping[bytes, bytes]) -> Iterator[list[tuple[bytes, bytes]]]:
    batch: list[tuple[bytes, bytes]] = []
    size = 0
    for item in values.items():
        if batch and (len(batch) == _MOST_ROWS or size + len(item[1]) > _MOST_BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(item)
        size += len(item[1])
    if batch:
        yield batch


def _checksum(key: bytes, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(key))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
