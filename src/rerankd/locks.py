"""File locks (flock), with a fallback for file systems without locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_log = logging.getLogger("rerankd")

# The errors of file systems without locks: NFS without its lock service, and some FUSE file systems.
_NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
# A lock file this old is left from a dead process and is replaced. A write takes milliseconds.
_LEFT_S = 10.0


@contextlib.contextmanager
def held(path: Path, waiting: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock of a file, exclusive among all processes. `waiting` is called before waiting for the
    lock.

    On a file system without locks, continues without one and logs a warning. Raises OSError, and
    BlockingIOError if another process holds the lock and `waiting` is None.
    """
    with path.open("a") as file:
        try:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if waiting is None:
                    raise
                waiting()
                fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            _log.warning(
                "the file system of %s has no locks (%s): only one process at a time may write there",
                path.parent,
                error.strerror,
            )
        yield


@contextlib.contextmanager
def held_soon(folder: Path, within_s: float) -> Iterator[None]:
    """Hold the lock of a folder, also on a file system without flock. Raises OSError if it is not acquired
    within `within_s` seconds."""
    deadline = time.monotonic() + within_s
    with (folder / ".lock").open("a") as file, contextlib.ExitStack() as stack:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if error.errno in _NO_FLOCK:
                    stack.enter_context(_lock_file(folder / ".lock.held", deadline))
                    break
                if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, errno.EINTR):
                    raise
                _wait(deadline)
        yield


@contextlib.contextmanager
def _lock_file(path: Path, deadline: float) -> Iterator[None]:
    """A lock for file systems without flock, such as some network file systems: the file exists while the
    lock is held."""
    while True:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            break
        except FileExistsError:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _LEFT_S:
                    path.unlink()
                    continue
            _wait(deadline)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _wait(deadline: float) -> None:
    if time.monotonic() >= deadline:
        raise TimeoutError(errno.ETIMEDOUT, "another process holds its lock")
    time.sleep(0.005)
