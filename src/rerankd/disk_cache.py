"""The cache on disk: values by 16-byte keys that survive a restart, in one file (see cache_file.py).

It never delays a request for long and never fails one. Two threads use the file: one reads; the other writes
what was put, twice a second. A read that takes longer than `wait_s` counts as a miss, and for some seconds
after it has ended all further reads do, too. A file that is damaged is set aside. If the file can't be used
or written, for example because the disk is full, this is logged once, shown in the status, and tried again.

`find` and `put` may be called from any thread, also from that of an event loop: they touch no file.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from rerankd import cache_database
from rerankd.cache_file import CacheFile

_log = logging.getLogger("rerankd")

_LEAST_WAIT_S = 0.1
WRITE_S = 0.5
"""Seconds between writes: a kill loses what was put since the last one."""
# Until the file is opened again after an error, and until it is read again after a late or failed read.
_RETRY_S = 30.0
_PAUSE_S = 5.0
_CLOSE_S = 3.0
# What waits to be written, at most; more is dropped.
_MOST_WAITING_BYTES = 32 * 2**20

_ERRORS = (sqlite3.Error, OSError, cache_database.NotUsable)
Values = dict[bytes, bytes]


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """The state of a file. `problem` says why it is not read or not written, or is "". `size_bytes` counts
    all files that belong to it. `hits` and `misses` count the keys that were looked up, `dropped` the values
    that could not be written, since the start."""

    path: str
    problem: str
    size_bytes: int
    most_bytes: int
    hits: int
    misses: int
    dropped: int


class DiskCache:
    """The values in one file, up to `most_bytes`, for `ttl_s` seconds (0: without a limit of time). To
    compute a value takes at least `spares_s`, so it is worth to wait that long for it."""

    def __init__(self, path: Path, most_bytes: int, ttl_s: float, spares_s: float) -> None:
        self._path, self._most_bytes, self._ttl_s, self._spares_s = path, most_bytes, ttl_s, spares_s
        self._lock = threading.Lock()
        self._waiting: Values = {}
        self._waiting_bytes = 0
        self._used: set[bytes] = set()
        self._jobs: queue.SimpleQueue[tuple[Sequence[bytes], Future[Values]] | None] = queue.SimpleQueue()
        # Until when a reader that is busy is in time: at first, it waits until the file is prepared.
        self._due: float = time.monotonic() + _LEAST_WAIT_S
        self._pause_until = 0.0
        self._closing = threading.Event()
        self._prepared = threading.Event()
        # Set by the reader, for the writer: the file that was found damaged.
        self._damaged: tuple[int, int] | None = None
        self._problem = ""
        self._size_bytes = 0
        self._hits = self._misses = self._dropped = 0
        self._threads = [
            threading.Thread(target=self._read_all, name=f"read {path.name}", daemon=True),
            threading.Thread(target=self._write_all, name=f"write {path.name}", daemon=True),
        ]

    def start(self) -> None:
        """Open the file, in another thread."""
        for thread in self._threads:
            thread.start()

    def status(self) -> DiskStatus:
        with self._lock:
            return DiskStatus(
                str(self._path),
                self._problem,
                self._size_bytes,
                self._most_bytes,
                self._hits,
                self._misses,
                self._dropped,
            )

    def wait_s(self, keys: int) -> float:
        """How long to wait for so many keys."""
        return max(_LEAST_WAIT_S, keys * self._spares_s)

    def find(self, keys: Sequence[bytes]) -> Future[Values]:
        """The values of those keys that are known. The caller waits for at most `wait_s`, then cancels the
        future and goes on without them."""
        found: Future[Values] = Future()
        now = time.monotonic()
        if not keys or now > self._due or now < self._pause_until or self._closing.is_set():
            found.set_result({})
        else:
            self._jobs.put((keys, found))
        return found

    def put(self, key: bytes, value: bytes) -> None:
        """Write a value soon. It is dropped if too much waits, or if it is too large for the file."""
        with self._lock:
            waiting = self._waiting_bytes + len(value) - len(self._waiting.get(key, b""))
            if waiting > _MOST_WAITING_BYTES or self._closing.is_set():
                self._dropped += 1
            else:
                self._waiting[key], self._waiting_bytes = value, waiting

    def close(self) -> None:
        """Write what waits, and close the file. Blocks for some seconds at most."""
        self._closing.set()
        self._jobs.put(None)
        deadline = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(deadline - time.monotonic(), 0))

    def _read_all(self) -> None:
        """The thread that reads."""
        self._prepared.wait()
        self._due = math.inf
        file: CacheFile | None = None
        while (job := self._jobs.get()) is not None:
            keys, future = job
            if not future.set_running_or_notify_cancel():
                continue
            self._due = due = time.monotonic() + self.wait_s(len(keys))
            found: Values = {}
            used: list[bytes] = []
            try:
                file = file or CacheFile(self._path, self._most_bytes, self._ttl_s)
                if file.is_replaced():
                    file = _close(file)
                else:
                    found, used = file.read(keys)
            except _ERRORS as error:
                if file is not None and cache_database.is_damage(error):
                    self._damaged = file.identity
                file = _close(file)
                due = 0.0
            if (now := time.monotonic()) > due:  # late, or failed
                self._pause_until = now + _PAUSE_S
            self._due = math.inf
            with self._lock:
                self._hits += len(found)
                self._misses += len(keys) - len(found)
                self._used.update(used)
            future.set_result(found)
        _close(file)

    def _write_all(self) -> None:
        """The thread that writes, and that prepares and repairs the file."""
        file: CacheFile | None = None
        retry_at, is_last = 0.0, False
        while not is_last:
            is_last = self._prepared.is_set() and self._closing.wait(WRITE_S)
            try:
                if file is not None:
                    self._repair(file)
                    if file.is_replaced():
                        file, retry_at = _close(file), 0.0
                if file is None and (time.monotonic() >= retry_at or is_last):
                    retry_at = time.monotonic() + _RETRY_S
                    file = self._opened()
                    self._prepared.set()
                    file.make_room()  # the bound may be smaller than before
                if file is not None:
                    self._write(file)
            except _ERRORS as error:
                if file is not None and cache_database.is_damage(error):
                    self._damaged = file.identity
                self._failed(error)
            self._prepared.set()
        _close(file)

    def _opened(self) -> CacheFile:
        if why := cache_database.prepare(self._path):
            self._warn_aside(why)
        file = CacheFile(self._path, self._most_bytes, self._ttl_s)
        with self._lock:
            self._problem = ""
        return file

    def _repair(self, file: CacheFile) -> None:
        """Set the file aside if it was found damaged."""
        if self._damaged == file.identity:
            cache_database.set_aside(self._path, file.identity)
            self._damaged = None  # its inode may be used again
            self._warn_aside("it is damaged")

    def _warn_aside(self, why: str) -> None:
        name = self._path.name
        _log.warning(
            "%s was not usable (%s). It was renamed to %s.damaged, and a new cache begins. You can delete "
            "the renamed files.",
            self._path,
            why,
            name,
        )

    def _write(self, file: CacheFile) -> None:
        with self._lock:
            values, self._waiting, self._waiting_bytes = self._waiting, {}, 0
            used, self._used = self._used, set()
        fit = {key: value for key, value in values.items() if len(value) <= file.largest_value}
        written = False
        try:
            if fit or used:
                file.write(fit, used)
                written = True
        finally:
            with self._lock:
                self._dropped += len(values) - (len(fit) if written else 0)
                if written:
                    self._problem = ""
        size = file.size_bytes()
        with self._lock:
            self._size_bytes = size

    def _failed(self, error: Exception) -> None:
        """Note why the file can't be used or written."""
        why = cache_database.words(error)
        with self._lock:
            self._dropped += len(self._waiting)
            self._waiting, self._waiting_bytes, self._used = {}, 0, set()
            is_new, self._problem = self._problem != why, why
        if is_new:
            _log.warning(
                "%s can't be used (%s). Requests are answered without it, and it is tried again.",
                self._path,
                why,
            )


def _close(file: CacheFile | None) -> CacheFile | None:
    """Close a file. Returns None, the file that is open then."""
    if file is not None:
        with contextlib.suppress(sqlite3.Error):
            file.close()
    return None
