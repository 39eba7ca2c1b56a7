"""The SQLite database of the cache on disk: create it, open it, and set a damaged one aside."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from pathlib import Path
from urllib.parse import quote

from rerankd import locks

VERSION = 1
PAGE_BYTES = 4096
LOG_BYTES = 4 * 2**20
"""The write-ahead log is copied into the database when it has reached this size."""
SUFFIXES = ("-wal", "-shm", "")
"""What is added to the name of the database for all its files; the database itself last, since it is not
whole without its log."""
LOCK_S = 2.0
"""How long to wait for the lock of the folder, in seconds."""

_APPLICATION = 0x52524B44  # "RRKD", in the header of the file
_BUSY_S = 1.0
_ASIDE = ".damaged"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT)

_SCHEMA = f"""
PRAGMA page_size = {PAGE_BYTES};
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
    with contextlib.suppress(FileExistsError):  # a file: the lock says that it is no folder
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locks.held_soon(path.parent, LOCK_S):
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
    `identity_of` returned. Raises OSError."""
    with locks.held_soon(path.parent, LOCK_S):
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
    for suffix in SUFFIXES:
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
    with contextlib.closing(connect(path)) as database:
        application, version = number(database, "application_id"), number(database, "user_version")
        if not application and not version and not number(database, "page_count"):
            database.executescript(_SCHEMA)
        elif application != _APPLICATION:
            raise NotUsable("it is not a cache of rerankd")
        elif version != VERSION:
            raise NotUsable(f"it has version {version}, but this rerankd supports {VERSION}")
        columns = [row[1] for row in database.execute("PRAGMA table_info(entries)")]
        if tuple(columns) != _COLUMNS:
            raise NotUsable("its table has other columns")


def connect(path: Path) -> sqlite3.Connection:
    """Open a database that exists. Raises sqlite3.Error."""
    place = f"file:{quote(os.path.abspath(path))}?mode=rw"
    database = sqlite3.connect(place, uri=True, timeout=_BUSY_S, isolation_level=None)
    try:
        # Without a write to the disk for each commit: a power failure may lose the last commits, no more.
        database.execute("PRAGMA synchronous = NORMAL")
        database.execute("PRAGMA wal_autocheckpoint = 0")
        database.execute(f"PRAGMA journal_size_limit = {LOG_BYTES}")
        database.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        database.close()
        raise
    return database


def number(database: sqlite3.Connection, name: str) -> int:
    """Return the value of a PRAGMA that is a number."""
    return int(database.execute(f"PRAGMA {name}").fetchone()[0])
