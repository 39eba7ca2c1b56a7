"""Locks on files, as far as the file system has them."""

from __future__ import annotations

import errno
import fcntl
import logging

_log = logging.getLogger("rerankd")

# How file systems say that they have no locks: NFS without its lock service, and some FUSE ones.
NO_FLOCK = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def take(lock: int, what: str, *, wait: bool) -> None:
    """Take the exclusive lock of an open file, until it is closed; `what` names its folder.

    Where the file system has no locks the work goes on without one, and the log says so. Raises
    BlockingIOError where another process holds it and `wait` is False, and OSError.
    """
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        _log.warning(
            "the file system of %s has no locks (%s): don't let two processes write there at a time",
            what,
            error.strerror,
        )
