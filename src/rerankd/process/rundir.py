"""The private folder of one service: its engines' sockets, and a note of each engine that runs.

The service holds a lock (flock) on the folder itself as long as it lives. The kernel lets go of it when the
service ends, however it ends, and it holds across pid namespaces: two containers may share /tmp, and each
sees the other's pids as dead. systemd-tmpfiles leaves a locked folder alone as well (tmpfiles.d(5), "Age").

The folder may be removed all the same, by logind when its user logs out or by a script that cleans /tmp. So
it is looked for before each start of an engine, and made again.

A service that was killed leaves its folder behind, and where the system can't tie children to their parent
(see die_with_parent.py), perhaps an engine that runs on: the next service finds both by the notes and ends
them. A note holds pid, start time and command line, so that a pid which means somebody else by now is left
alone; a folder of another user is not even read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

from rerankd import processes
from rerankd.errors import DataFolderError

_log = logging.getLogger("rerankd.engine")

_PREFIX = "rerankd-"
# The process's id and random characters; 0.1 had those of tempfile.mkdtemp.
_NAME = re.compile(rf"{_PREFIX}\d+-[a-z0-9_]{{8}}")
# rerankd 0.1 wrote its pid into this file and took no lock.
_OWNER = "owner.json"
# Notes, and the tiny model of a smoke test.
_FILES = (".json", ".gguf")
# sun_path of unix(7) and of macOS' sys/un.h, less the NUL at its end.
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
_OWN_BYTES = len("/rerankd-4194304-01234567/012345.sock")
_LOGIN = "/run/user/"


class RunDir:
    """A folder that only this user can enter, made by `make` and again whenever it has gone. One thread at a
    time may use it."""

    def __init__(self, base: Path | None = None) -> None:
        self._base = base
        self._path: Path | None = None
        self._held: int | None = None

    def make(self) -> Path:
        """The folder's path; the folder is there. Raises DataFolderError where it can't be made."""
        if self._path is None or not self._is_there(self._path):
            self._let_go()
            self._path, self._held = _make(_place((self._base,) if self._base else places(os.environ)))
        return self._path

    def socket(self) -> Path:
        """A path for a new socket; the folder is there. Raises DataFolderError."""
        return self.make() / f"{secrets.token_hex(3)}.sock"

    def note(self, pid: int) -> Path:
        """Note that the engine `pid` runs for this service; the caller removes the note when it has ended."""
        assert self._path is not None, "the engine's socket came first"
        path = self._path / f"{pid}.json"
        identity = processes.identify(pid)
        # Without a note the next service leaves an orphan alone: on a full disk, better than no service now.
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(asdict(identity)) if identity is not None else "")
        return path

    def remove(self) -> None:
        """Remove the folder and all in it; nothing happens where it is gone already."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
        self._path = None
        self._let_go()

    def _is_there(self, path: Path) -> bool:
        """Whether it is the folder that was made, and not another one of its name."""
        assert self._held is not None
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._held), path.lstat())
        return False

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def make(base: Path | None = None) -> RunDir:
    """A new folder; `base` is where it lies instead of one of `places`. What dead services left behind is
    ended and removed first. Raises DataFolderError where there is no room for it."""
    folder = RunDir(base)
    sweep(folder.make().parent)
    return folder


def places(environ: Mapping[str, str]) -> Iterator[Path]:
    """Where the folder may lie, the best place first.

    A login's XDG_RUNTIME_DIR is removed when its user logs out, which a service in the background outlives.
    In a unit of the user's systemd (which INVOCATION_ID tells) the service ends with it, and there it is
    used; so is any other folder of that name.
    """
    if own := environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:  # RuntimeDirectory= of a unit
        yield Path(own)
    given = environ.get("XDG_RUNTIME_DIR", "")
    if given and ("INVOCATION_ID" in environ or not given.startswith(_LOGIN)):
        yield Path(given)
    with contextlib.suppress(OSError):  # there is no folder that can be written to
        yield Path(tempfile.gettempdir())
    yield Path("/tmp")


def sweep(base: Path) -> None:
    """End the engines of dead services, and remove their folders. A folder of such a name that holds anything
    else is somebody's own, and is left alone."""
    for folder in base.glob(f"{_PREFIX}*-*"):
        if not _NAME.fullmatch(folder.name):
            continue
        with contextlib.suppress(OSError):
            held = _open(folder)
            try:
                if _lock(held) and _is_run_folder(folder) and not _old_owner_runs(folder):
                    _end_engines(folder)
                    shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)


def _is_run_folder(folder: Path) -> bool:
    """Whether it holds nothing but sockets and notes."""
    return all(
        stat.S_ISSOCK(mode) or (stat.S_ISREG(mode) and path.suffix in _FILES)
        for path in folder.iterdir()
        for mode in (path.lstat().st_mode,)
    )


def _place(candidates: Iterable[Path]) -> Path:
    tried: list[str] = []
    for path in candidates:
        if len(os.fsencode(path)) + _OWN_BYTES > SOCKET_PATH_BYTES:
            tried.append(f"{path} (too long for a socket's path)")
        elif not os.access(path, os.W_OK | os.X_OK):
            tried.append(f"{path} ({'not writable' if path.exists() else 'does not exist'})")
        else:
            return path
    raise DataFolderError(
        f"rerankd has no folder for its sockets: {', '.join(dict.fromkeys(tried))}. Make /tmp writable (in a "
        "container: a tmpfs), or name another folder with a short path in XDG_RUNTIME_DIR."
    )


def _make(base: Path) -> tuple[Path, int]:
    """A new folder in `base`, and the descriptor that holds its lock."""
    try:
        # Under another name until it is locked: a service that starts now would take it for a dead one's.
        new = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=base))
        held = _open(new)
        with contextlib.suppress(OSError):  # no locks here, so that nobody else takes it for a dead one's
            _lock(held)
        folder = base / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        new.rename(folder)
    except OSError as error:
        raise DataFolderError(
            f"rerankd can't make a folder for its sockets in {base}: {error.strerror}. Make room there, or "
            "name another folder with XDG_RUNTIME_DIR."
        ) from error
    return folder, held


def _open(folder: Path) -> int:
    """A descriptor of a folder that this user made; in /tmp anyone may make one of any name. Raises
    OSError."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(held)
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        os.close(held)
        raise PermissionError(errno.EPERM, "another user's folder", str(folder))
    return held


def _lock(held: int) -> bool:
    """Take the lock; False where somebody has it. Raises OSError where there are no locks, as on some NFS."""
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _old_owner_runs(folder: Path) -> bool:
    owner = _read(folder / _OWNER)
    return owner is not None and _runs(owner)


def _end_engines(folder: Path) -> None:
    for path in folder.glob("*.json"):
        if path.name != _OWNER and (engine := _read(path)) is not None and _runs(engine):
            _log.warning("ending the engine %d of an earlier run: %s", engine.pid, engine.command)
            processes.end_group(engine.pid)


def _runs(noted: processes.Identity) -> bool:
    now = processes.identify(noted.pid)
    # Between fork and exec a child still has the command line of its parent, so an engine's note may.
    return now is not None and now.started == noted.started


def _read(path: Path) -> processes.Identity | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return processes.Identity(**json.loads(path.read_text()))
    return None
