"""Persistent state: what rerankd has learned about this machine and its models, in `state/` in the data
folder.

Each section ("precision", "self_test", …) is one JSON file with a version and its entries. Everything in it
can be learned again, so losing it only costs time, and reading it raises no errors.

- A writer takes a lock, reads the file again, changes its own entry and replaces the file, so services that
  share a data folder keep each other's entries. Readers take no lock; they read the file again when it has
  changed.
- A file that is damaged, or written by a newer rerankd, is treated as empty. The next writer renames it.
- If the file can't be written (read-only folder, full disk, locked by another process), entries are kept in
  memory and written with the next write that succeeds. This is logged once.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rerankd import locks
from rerankd.errors import disk_errors
from rerankd.files import write_whole

_log = logging.getLogger("rerankd")

FOLDER = "state"
VERSION = 1
MOST_ENTRIES = 1_000
"""Maximum number of entries of a section. The oldest are dropped."""
MOST_VALUE_BYTES = 16 * 2**10
"""Maximum size of one entry's key and value as JSON."""
# This module writes no larger file. A larger one is not read into memory.
_MOST_FILE_BYTES = 2 * MOST_ENTRIES * MOST_VALUE_BYTES
_LOCK_WAIT_S = 1.0
# The clocks of machines that share a folder differ by less. An entry further in the future is not trusted.
_CLOCK_SKEW_S = 300.0
_SECTION = re.compile(r"[a-z][a-z0-9_]{0,40}")

# Raised by parsing JSON of an unexpected form.
_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A learned value. `at` and `until` are in seconds since 1970; with `until` None it does not expire."""

    value: Any
    at: float
    until: float | None = None

    def is_live(self, now: float) -> bool:
        """Whether it has not expired."""
        return self.until is None or self.at - _CLOCK_SKEW_S <= now < self.until


@dataclass(slots=True)
class _Section:
    """The last content read from a file, its stamp then, and the changes not yet written (None: removed).
    `unread` says why the file is treated as empty."""

    stamp: _Stamp = None
    entries: dict[str, Entry] = field(default_factory=dict)
    pending: dict[str, Entry | None] = field(default_factory=dict)
    unread: str = ""


class StateStore:
    """The learned values in a data folder. Thread-safe.

    Reading checks one file's modification time. Writing takes milliseconds, or up to a second while another
    process writes, so an event loop must call `put`, `remove` and `clear` in a thread.
    """

    def __init__(self, home: Path, *, now: Callable[[], float] = time.time) -> None:
        self.folder = home / FOLDER
        self._now = now
        self._sections: dict[str, _Section] = {}
        self._mutex = threading.RLock()
        self._warned = False

    def get(self, section: str, key: str) -> Any | None:
        """The value of an entry; None if there is none, or it has expired."""
        entry = self.entries(section).get(key)
        return None if entry is None else entry.value

    def entries(self, section: str) -> dict[str, Entry]:
        """The entries of a section that have not expired, oldest first."""
        with self._mutex:
            known = self._read(section)
            return self._live(_merged(known.entries, known.pending))

    def sections(self) -> list[str]:
        """The names of the sections that have entries."""
        with self._mutex:
            names = {path.stem for path in self._files() if _SECTION.fullmatch(path.stem)}
            names |= {name for name, section in self._sections.items() if section.pending}
            return sorted(name for name in names if self.entries(name))

    def put(self, section: str, key: str, value: Any, ttl_s: float | None = None) -> None:
        """Store a value, for `ttl_s` seconds or without expiry. Raises ValueError if it is not JSON, or
        exceeds MOST_VALUE_BYTES with its key."""
        self._change(section, {key: self._made(section, key, value, ttl_s)})

    def setdefault(self, section: str, key: str, value: Any, ttl_s: float | None = None) -> Any:
        """Store a value, for `ttl_s` seconds or without expiry, if there is none yet. Returns the stored
        value: if several processes store one at the same time, the first. Raises ValueError like `put`."""
        with self._mutex:
            if self.get(section, key) is None:
                self._change(section, {key: self._made(section, key, value, ttl_s)}, unless_there=True)
            return self.get(section, key)

    def remove(self, section: str, key: str) -> None:
        """Remove an entry, if there is one."""
        if key in self.entries(section):
            self._change(section, {key: None})

    def clear(self, section: str | None = None) -> int:
        """Remove a section, or all of them, including renamed damaged files. Returns the number of entries
        removed. Raises DataFolderError if a file can't be removed."""
        with self._mutex:
            names = self.sections() if section is None else [section]
            count = sum(len(self.entries(name)) for name in names)
            for name in names:
                self._sections[name].pending.clear()
            files = [path for path in self._files() if section in (None, path.name.partition(".")[0])]
            with (
                disk_errors(
                    f"{self.folder} can't be cleared",
                    "Change its permissions, or delete the folder; rerankd creates it again.",
                ),
                locks.held_soon(self.folder, _LOCK_WAIT_S) if files else contextlib.nullcontext(),
            ):
                for path in files:
                    path.unlink(missing_ok=True)
            return count

    def _files(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return sorted(self.folder.glob("[a-z]*.json"))
        return []

    def _path(self, section: str) -> Path:
        if not _SECTION.fullmatch(section):
            raise ValueError(f"{section!r} is not a valid section name")
        return self.folder / f"{section}.json"

    def _made(self, section: str, key: str, value: Any, ttl_s: float | None = None) -> Entry:
        size = len(json.dumps([key, value], allow_nan=False).encode())
        if size > MOST_VALUE_BYTES:
            raise ValueError(f"{section}: the entry has {size} bytes; the limit is {MOST_VALUE_BYTES}")
        now = self._now()
        return Entry(value, now, None if ttl_s is None else now + ttl_s)

    def _live(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        now = self._now()
        return {key: entry for key, entry in entries.items() if entry.is_live(now)}

    def _read(self, section: str) -> _Section:
        """The section as it is on disk now. The caller holds the mutex."""
        path = self._path(section)
        known = self._sections.setdefault(section, _Section())
        stamp = _stamp(path)
        if stamp != known.stamp:
            known.stamp, known.entries, known.unread = stamp, {}, ""
            if stamp is not None:
                try:
                    known.entries = _load(path, stamp)
                except OSError as error:
                    _log.debug("%s can't be read: %s", path, error)
                except _NOT_OURS as error:
                    known.unread = str(error) or repr(error)
        return known

    def _change(
        self, section: str, changes: Mapping[str, Entry | None], *, unless_there: bool = False
    ) -> None:
        with self._mutex:
            path = self._path(section)
            self._read(section).pending.update(changes)
            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                with locks.held_soon(self.folder, _LOCK_WAIT_S):
                    known = self._read(section)
                    if unless_there:
                        for key in self._live(known.entries).keys() & changes.keys():
                            del known.pending[key]
                    self._write(path, known)
            except OSError as error:
                pending = self._sections[section].pending
                for key in list(pending)[:-MOST_ENTRIES]:
                    del pending[key]
                self._warn_once(error)

    def _write(self, path: Path, known: _Section) -> None:
        """Write a section, just read, with its pending changes. The caller holds the lock and the mutex."""
        merged = self._live(_merged(known.entries, known.pending))
        kept = dict(list(merged.items())[-MOST_ENTRIES:])
        if known.unread:
            aside = path.with_suffix(".aside.json")
            _log.warning("%s is not usable (%s). It is renamed to %s.", path, known.unread, aside.name)
            os.replace(path, aside)
            known.unread = ""
        entries = {key: [one.value, one.at, one.until] for key, one in kept.items()}
        data = json.dumps({"version": VERSION, "entries": entries}, ensure_ascii=False, indent=1)
        write_whole(path, data.encode("utf-8", "replace"))
        known.entries, known.stamp = kept, _stamp(path)
        known.pending.clear()

    def _warn_once(self, error: OSError) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "%s can't be written (%s). What rerankd learns about this machine is kept in memory, and "
                "is lost at exit.",
                self.folder,
                error.strerror or error,
            )


def _load(path: Path, stamp: tuple[int, int, int]) -> dict[str, Entry]:
    """The entries of a file. Raises OSError, and one of _NOT_OURS if its content is not valid."""
    if stamp[1] > _MOST_FILE_BYTES:
        raise ValueError("it is too large")
    content = json.loads(path.read_bytes())
    if content["version"] != VERSION:
        raise ValueError(f"it has version {content['version']!r}, but this rerankd supports {VERSION}")
    return {str(key): _entry(one) for key, one in content["entries"].items()}


def _entry(parsed: Any) -> Entry:
    value, at, until = parsed
    return Entry(value, float(at), None if until is None else float(until))


def _merged(entries: Mapping[str, Entry], changes: Mapping[str, Entry | None]) -> dict[str, Entry]:
    """The entries after the changes; changed entries are the newest."""
    merged = {key: entry for key, entry in entries.items() if key not in changes}
    return merged | {key: entry for key, entry in changes.items() if entry is not None}


def _stamp(path: Path) -> _Stamp:
    """Identifies a version of a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
