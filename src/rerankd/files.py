"""Atomic writes of files and folders, which appear complete or not at all; and logs, which are rotated."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

_LOG_BYTES = 8 * 2**20


def write_whole(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace the file at `path` atomically; where possible, it keeps its owner. Raises OSError and then
    leaves the old file."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-")
    try:
        with os.fdopen(number, "wb") as stream:
            stream.write(data)
            stream.flush()
            # Without fsync, a power failure can leave the new file empty.
            os.fsync(stream.fileno())
        os.chmod(name, mode)
        _keep_owner(path, name)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _keep_owner(old: Path, new: str) -> None:
    """Give the new file the owner of the old one. Else a service could not read its settings or keys after
    root has changed them."""
    with contextlib.suppress(OSError):
        found = old.stat()
        os.chown(new, found.st_uid, found.st_gid)


def move_folder(new: Path, target: Path) -> None:
    """Move the folder `new` to `target` and delete the one that was there. Raises OSError."""
    aside = target.with_name(f".old-{target.name}")
    shutil.rmtree(aside, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        os.rename(target, aside)
    os.rename(new, target)
    shutil.rmtree(aside, ignore_errors=True)


def append_log(log: Path, chunk: bytes) -> None:
    """Append to a log file, ignoring disk errors. The log is rotated once, to .log.1. It is opened each time,
    because logrotate moves it, and other programs remove it or its folder."""
    with contextlib.suppress(OSError):
        log.parent.mkdir(parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            os.replace(log, log.with_suffix(".log.1"))
        with open(log, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream:
            stream.write(chunk)


def free_bytes(folder: Path) -> int:
    """Return the free space on the disk of `folder`, which need not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(existing).free
