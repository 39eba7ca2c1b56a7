"""One file of the cache on disk: byte strings by 16-byte keys, in an SQLite database in WAL mode.

SQLite, because it is in the standard library and survives a kill in the middle of a write. LMDB maps its file
into memory, so a truncated file kills the process, and diskcache is SQLite with pickled values.

- Row ids grow with each write, so the rows with the smallest ids are the oldest. A row that is read and is
  among the older half gets a new id. Eviction deletes from the smallest id on: approximately the least
  recently used.
- Each row has a checksum of its key and value. A row that fails it is not returned.
- The database, its write-ahead log and its index file together stay below `most_bytes`.

A connection belongs to the thread that uses it. Several processes may use the same file.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from rerankd import locks

VERSION = 1
LEAST_BYTES = 32 * 2**20
"""The smallest bound that leaves room for the write-ahead log."""

_APPLICATION = 0x52524B44  # "RRKD", in the header of the file
_PAGE_BYTES = 4096
# One transaction changes up to so many rows and bytes of values, so that the log stays small: each row
# changes up to two pages.
_MOST_ROWS = 512
_MOST_BATCH_BYTES = 2**20
# The log is copied into the database when it has reached this size.
_LOG_BYTES = 4 * 2**20
# How much of the bound is left to the log: its size, a batch beyond it, and the largest value.
_LARGEST = 16  # the largest value, as a fraction of the bound
_RESERVE_BYTES = 12 * 2**20
# Eviction frees this fraction of the bound at a time.
_FREED = 1 / 32
_KEYS_A_QUERY = 500
_BUSY_S = 1.0
_LOCK_S = 2.0
_SUFFIXES = ("-wal", "-shm", "")  # the database last: without its log it is not whole
_ASIDE = ".damaged"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)

_SCHEMA = f"""
PRAGMA page_size = {_PAGE_BYTES};
PRAGMA auto_vacuum = INCREMENTAL;
PRAGMA journal_mode = WAL;
BEGIN IMMEDIATE;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {VERSION};
CREATE TABLE IF NOT EXISTS entries (
    id INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE, at INTEGER NOT NULL, checksum INTEGER NOT NULL,
    value BLOB NOT NULL
);
COMMIT;
"""
_COLUMNS = ("id", "key", "at", "checksum", "value")


class NotUsable(Exception):
    """The path has something else than a database of this version."""


def is_damage(error: Exception) -> bool:
    """Whether the error says that the file must be set aside."""
    return isinstance(error, NotUsable) or _code(error) in _DAMAGED


def words(error: Exception) -> str:
    """What an error says, as a clause for messages."""
    if _code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "another process has locked it"
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def _code(error: Exception) -> int | None:
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF  # without the details of an extended code


def prepare(path: Path) -> str:
    """Create the file if there is none. A file that is damaged, or of another version, is renamed to
    *.damaged, which replaces an earlier one. Returns why that was necessary, or "". Raises OSError and
    sqlite3.Error."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locks.held_soon(path.parent, _LOCK_S):
        try:
            _create(path)
        except (NotUsable, sqlite3.Error) as error:
            if not is_damage(error):
                raise
            _set_aside(path)
            _create(path)
            return words(error)
    return ""


def set_aside(path: Path, identity: tuple[int, int]) -> None:
    """Rename a file that was found damaged, unless another process has replaced it since. `identity` is what
    `CacheFile.identity` said. Raises OSError."""
    with locks.held_soon(path.parent, _LOCK_S):
        if identity_of(path) == identity:
            _set_aside(path)


def identity_of(path: Path) -> tuple[int, int] | None:
    """Distinguishes the file from one that replaces it; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _set_aside(path: Path) -> None:
    for suffix in _SUFFIXES:
        with contextlib.suppress(FileNotFoundError):
            source, target = Path(f"{path}{suffix}"), Path(f"{path}{_ASIDE}{suffix}")
            if target.is_dir() or (source.is_dir() and target.exists()):
                target = Path(f"{target}-{time.time_ns()}")
            os.replace(source, target)


def _create(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(path.stat().st_mode):  # opening a FIFO would block
            raise NotUsable("it is not a file")
    # SQLite gives its other files the mode of the database.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600))
    with contextlib.closing(_connect(path)) as database:
        application, version = _number(database, "application_id"), _number(database, "user_version")
        if not application and not version and not _number(database, "page_count"):
            database.executescript(_SCHEMA)
        elif application != _APPLICATION:
            raise NotUsable("it is not a cache of rerankd")
        elif version != VERSION:
            raise NotUsable(f"it has version {version}, but this rerankd supports {VERSION}")
        columns = [row[1] for row in database.execute("PRAGMA table_info(entries)")]
        if tuple(columns) != _COLUMNS:
            raise NotUsable("its table has other columns")


def _connect(path: Path) -> sqlite3.Connection:
    place = f"file:{quote(os.path.abspath(path))}?mode=rw"
    database = sqlite3.connect(place, uri=True, timeout=_BUSY_S, isolation_level=None)
    try:
        # Without a write to the disk for each commit: a power failure may lose the last commits, no more.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        database.execute(f"PRAGMA journal_size_limit = {_LOG_BYTES}")
        database.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        database.close()
        raise
    return database


def _number(database: sqlite3.Connection, name: str) -> int:
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])


class CacheFile:
    """A connection to a prepared file. All methods raise sqlite3.Error and OSError."""

    def __init__(self, path: Path, most_bytes: int, ttl_s: float) -> None:
        """`most_bytes` is at least LEAST_BYTES. Values are not returned `ttl_s` seconds after they were
        written; 0 for no limit."""
        self.largest_value = most_bytes // _LARGEST
        self._path, self._most_bytes, self._ttl_s = path, most_bytes, ttl_s
        with locks.held_soon(path.parent, _LOCK_S):
            found = identity_of(path)
            if found is None:
                raise FileNotFoundError(f"{path} is missing")
            self.identity = found
            self._database = _connect(path)
            _number(self._database, "schema_version")  # open all files now

    def close(self) -> None:
        self._database.close()

    def is_replaced(self) -> bool:
        """Whether the path names another file by now, or none."""
        return identity_of(self._path) != self.identity

    def size_bytes(self) -> int:
        """The bytes of the database and the files beside it."""
        return sum(_size(Path(f"{self._path}{suffix}")) for suffix in _SUFFIXES)

    def read(self, keys: Sequence[bytes]) -> tuple[dict[bytes, bytes], list[bytes]]:
        """The values of the keys that are known, and which of these keys were not used for so long that they
        should be written again (see `write`)."""
        found: dict[bytes, bytes] = {}
        old: list[bytes] = []
        oldest = 0 if self._ttl_s <= 0 else int(time.time() - self._ttl_s)
        middle = self._middle()
        for start in range(0, len(keys), _KEYS_A_QUERY):
            part = keys[start : start + _KEYS_A_QUERY]
            marks = ",".join("?" * len(part))
            rows = self._database.execute(
                f"SELECT id, key, checksum, value FROM entries WHERE key IN ({marks}) AND at >= ?",
                (*part, oldest),
            )
            for number, key, checksum, value in rows:
                if checksum == _checksum(key, value):
                    found[key] = value
                    if number < middle:
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
        if _number(self._database, "page_count") * _PAGE_BYTES < self._limit_bytes // 2:
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
        while _number(self._database, "page_count") * _PAGE_BYTES > self._limit_bytes:
            # `execute` would take one step, which frees one page.
            self._database.executescript("PRAGMA incremental_vacuum(1024)")
            self._shorten_log(0)

    def _used_bytes(self) -> int:
        pages = _number(self._database, "page_count") - _number(self._database, "freelist_count")
        return pages * _PAGE_BYTES

    def _evict(self) -> bool:
        """Delete the oldest rows, in one transaction. Returns whether there were any."""
        oldest = "SELECT id, length(value) FROM entries ORDER BY id LIMIT ?"
        last, freed = None, 0
        for number, size in self._database.execute(oldest, (_MOST_ROWS,)):
            if last is not None and freed + size > _MOST_BATCH_BYTES:
                break
            last, freed = number, freed + size
        if last is None:
            return False
        with self._transaction() as run:
            run.execute("DELETE FROM entries WHERE id <= ?", (last,))
        return True

    def _shorten_log(self, most_bytes: int = _LOG_BYTES) -> None:
        """Copy the log into the database if it has more bytes. The database shrinks only then."""
        log = Path(f"{self._path}-wal")
        if _size(log) > most_bytes:
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if _size(log) > _LOG_BYTES + self.largest_value:
                raise sqlite3.OperationalError("its write-ahead log is in use and can't be shortened")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._database
            self._database.execute("COMMIT")
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
