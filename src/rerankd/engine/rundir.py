"""The private folder of one service: its engines' sockets, and a note of each engine that runs.

It is gone with the service. A service that was killed leaves its folder behind, and where the system can't
tie children to their parent (see tether.py), perhaps an engine that runs on: the next service finds both by
the notes and ends them. A note holds pid, start time and command line, so that a pid which means somebody
else by now is left alone; a folder of another user is not even read.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import stat
import tempfile
from dataclasses import asdict
from pathlib import Path

from rerankd.engine import process
from rerankd.errors import DataFolderError

_log = logging.getLogger("rerankd.engine")

_PREFIX = "rerankd-"
_OWNER = "owner.json"
# A UNIX socket's path may have 107 bytes on Linux and 103 on macOS; the socket's own name takes about 12.
_LONGEST = 80


def make(base: Path | None = None) -> Path:
    """A new folder that only this user can enter. What dead services left behind is ended and removed
    first. Raises DataFolderError where there is no room for it."""
    base = base or Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if len(os.fsencode(base)) > _LONGEST or not os.access(base, os.W_OK):
        base = Path("/tmp")
    sweep(base)
    try:
        folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))
    except OSError as error:
        raise DataFolderError(
            f"rerankd can't make a folder for its sockets in {base}: {error.strerror}. Make room there, or "
            "name another folder with XDG_RUNTIME_DIR."
        ) from error
    _write(folder / _OWNER, os.getpid())
    return folder


def remove(folder: Path) -> None:
    """Remove the folder and all in it; nothing happens where it is gone already."""
    shutil.rmtree(folder, ignore_errors=True)


def note(folder: Path, pid: int) -> Path:
    """Note that the engine `pid` runs for this service; the caller removes the note when it has ended."""
    path = folder / f"{pid}.json"
    _write(path, pid)
    return path


def sweep(base: Path) -> None:
    """End the engines of dead services, and remove their folders."""
    for folder in base.glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if not pid.isdigit() or not _is_ours(folder) or _is_alive(folder, int(pid)):
            continue
        for path in folder.glob("*.json"):
            if path.name != _OWNER and (engine := _read(path)) is not None and _runs(engine):
                _log.warning("ending the engine %d of an earlier run: %s", engine.pid, engine.command)
                process.end_group(engine.pid)
        remove(folder)


def _is_ours(folder: Path) -> bool:
    """Whether it is a folder that this user made; in /tmp anyone may make one of any name."""
    with contextlib.suppress(OSError):
        status = folder.lstat()
        return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return False


def _is_alive(folder: Path, pid: int) -> bool:
    owner = _read(folder / _OWNER)
    return _runs(owner) if owner is not None else process.identify(pid) is not None


def _runs(noted: process.Identity) -> bool:
    now = process.identify(noted.pid)
    # Between fork and exec a child still has the command line of its parent, so an engine's note may.
    return now is not None and now.started == noted.started


def _write(path: Path, pid: int) -> None:
    identity = process.identify(pid)
    # Without a note the next service leaves an orphan alone: on a full disk, better than no service now.
    with contextlib.suppress(OSError):
        path.write_text(json.dumps(asdict(identity)) if identity is not None else "")


def _read(path: Path) -> process.Identity | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return process.Identity(**json.loads(path.read_text()))
    return None
