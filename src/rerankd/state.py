"""What rerankd has learned about this machine and its models: `state/` in the data folder.

One JSON file for each section ("precision", "self_test", …) holds a version and its entries. All of it can be
learned again, so losing it costs time and no more: no reader of this module has an error to handle.

- Writers take a lock, read the file again, change their own entry and replace the file, so services that
  share a data folder keep each other's entries. Readers take no lock; they read the
  file again when it has changed.
- A file that is damaged, or that a newer rerankd wrote, counts as empty. The next writer renames it.
- Where nothing can be written (a read-only folder, a full disk, a lock that somebody else holds), entries are
  kept in this process's memory and written with the next one that can be. The log says so once.
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
"""Entries of a section. The ones written first are dropped."""
MOST_VALUE_BYTES = 16 * 2**10
"""Bytes of one entry's key and value as JSON."""
# No section that this module wrote is larger; one that is, is not read into memory.
_MOST_FILE_BYTES = 2 * MOST_ENTRIES * MOST_VALUE_BYTES
_LOCK_WAIT_S = 1.0
# Clocks of machines that share a folder differ by less. An entry from the future has no age to trust.
_CLOCK_SKEW_S = 300.0
_SECTION = re.compile(r"[a-z][a-z0-9_]{0,40}")

# What reading JSON of any content may raise.
_NOT_OURS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A value that was learned. `at` and `until` are in seconds since 1970; `until` None is for good."""

    value: Any
    at: float
    until: float | None = None

    def is_live(self, now: float) -> bool:
        """Whether it still holds."""
        return self.until is None or self.at - _CLOCK_SKEW_S <= now < self.until


@dataclass(slots=True)
class _Section:
    """What was last read of a file, the stamp it had then, and the changes that could not be written yet
    (None: removed). `unread` says why the file counts as empty."""

    stamp: _Stamp = None
    entries: dict[str, Entry] = field(default_factory=dict)
    pending: dict[str, Entry | None] = field(default_factory=dict)
    unread: str = ""


class StateStore:
    """The learned values below a data folder. Safe to use from several threads.

    Reading looks at one file's time of change. Writing takes milliseconds, and up to a second where another
    process is writing, so an event loop calls `put`, `remove` and `clear` in a thread.
    """

    def __init__(self, home: Path, *, now: Callable[[], float] = time.time) -> None:
        self.folder = home / FOLDER
        self._now = now
        self._sections: dict[str, _Section] = {}
        self._mutex = threading.RLock()
        self._warned = False

    def get(self, section: str, key: str) -> Any | None:
        """The value of an entry; None where there is none, or its time is over."""
        entry = self.entries(section).get(key)
        return None if entry is None else entry.value

    def entries(self, section: str) -> dict[str, Entry]:
        """The entries of a section that still hold, the oldest first."""
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
        """Keep a value, for `ttl_s` seconds or for good. Raises ValueError where it is not JSON, or is larger
        than MOST_VALUE_BYTES with its key."""
        self._change(section, {key: self._made(section, key, value, ttl_s)})

    def setdefault(self, section: str, key: str, value: Any, ttl_s: float | None = None) -> Any:
        """Keep a value, for `ttl_s` seconds or for good, where there is none yet. Returns the one
        that is kept: of several processes that find out the same at once, the first one's. Raises ValueError
        as `put`."""
        with self._mutex:
            if self.get(section, key) is None:
                self._change(section, {key: self._made(section, key, value, ttl_s)}, unless_there=True)
            return self.get(section, key)

    def remove(self, section: str, key: str) -> None:
        """Forget an entry; nothing happens where there is none."""
        if key in self.entries(section):
            self._change(section, {key: None})

    def clear(self, section: str | None = None) -> int:
        """Forget a section, or all of them, with the files that were set aside. Returns how many entries
        there were. Raises DataFolderError where a file can't be removed."""
        with self._mutex:
            names = self.sections() if section is None else [section]
            count = sum(len(self.entries(name)) for name in names)
            for name in names:
                self._sections[name].pending.clear()
            files = [path for path in self._files() if section in (None, path.name.partition(".")[0])]
            with (
                disk_errors(
                    f"{self.folder} can't be cleared",
                    "Change its rights, or delete the folder: rerankd makes it anew.",
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
            raise ValueError(f"{section!r} is no name of a section")
        return self.folder / f"{section}.json"

    def _made(self, section: str, key: str, value: Any, ttl_s: float | None = None) -> Entry:
        size = len(json.dumps([key, value], allow_nan=False).encode())
        if size > MOST_VALUE_BYTES:
            raise ValueError(f"{section}: an entry may have {MOST_VALUE_BYTES} bytes, this one has {size}")
        now = self._now()
        return Entry(value, now, None if ttl_s is None else now + ttl_s)

    def _live(self, entries: Mapping[str, Entry]) -> dict[str, Entry]:
        now = self._now()
        return {key: entry for key, entry in entries.items() if entry.is_live(now)}

    def _read(self, section: str) -> _Section:
        """The section as it is on the disk now. The mutex is held."""
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
        """Write a section, just read, with its pending changes. The lock and the mutex are held."""
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
                "learned again after a restart.",
                self.folder,
                error.strerror or error,
            )


def _load(path: Path, stamp: tuple[int, int, int]) -> dict[str, Entry]:
    """The entries of a file. Raises OSError, and one of _NOT_OURS where it can't be understood."""
    if stamp[1] > _MOST_FILE_BYTES:
        raise ValueError("it is too large")
    said = json.loads(path.read_bytes())
    if said["version"] != VERSION:
        raise ValueError(f"it has version {said['version']!r}, and this rerankd knows {VERSION}")
    return {str(key): _entry(one) for key, one in said["entries"].items()}


def _entry(said: Any) -> Entry:
    value, at, until = said
    return Entry(value, float(at), None if until is None else float(until))


def _merged(entries: Mapping[str, Entry], changes: Mapping[str, Entry | None]) -> dict[str, Entry]:
    """The entries after the changes; what has changed is the newest."""
    merged = {key: entry for key, entry in entries.items() if key not in changes}
    return merged | {key: entry for key, entry in changes.items() if entry is not None}


def _stamp(path: Path) -> _Stamp:
    """What tells a file from the one that replaced it."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
