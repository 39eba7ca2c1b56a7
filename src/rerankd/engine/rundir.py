"""The private folder that holds the engines' sockets; gone with the service, and if not, with the next
one."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "rerankd-"
# A UNIX socket's path may have 107 bytes on Linux and 103 on macOS; the socket's own name takes about 12.
_LONGEST = 80


def make() -> Path:
    """A new folder that only this user can enter. What dead services left behind is removed first."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    if len(os.fsencode(base)) > _LONGEST or not os.access(base, os.W_OK):
        base = Path("/tmp")
    _sweep(base)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=base))


def remove(folder: Path) -> None:
    """Remove the folder and all in it; nothing happens where it is gone already."""
    shutil.rmtree(folder, ignore_errors=True)


def _sweep(base: Path) -> None:
    for folder in base.glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and folder.is_dir() and not _is_alive(int(pid)):
            remove(folder)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True  # it lives, and belongs to somebody else
    return True
