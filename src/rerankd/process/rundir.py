"""The run directory of one service: its engines' sockets, and a note (pid file) for each running engine.

The service holds a lock (flock) on the folder itself while it runs. The kernel releases the lock when the
service ends in any way. The lock also works across pid namespaces: two containers may share /tmp, and each
sees the other's pids as dead. systemd-tmpfiles does not clean up a locked folder (tmpfiles.d(5), "Age").

The folder may be removed nevertheless, by logind when its user logs out or by a script that cleans /tmp. So
each start of an engine checks the folder and recreates it if needed.

A killed service leaves its folder behind, and on systems where children can't be made to die with their
parent (see die_with_parent.py) perhaps a running engine. The next service finds both and ends them. A note
holds pid, start time and command line, so a pid that the system has reused is left alone. Folders of other
users are not read.
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
# The pid and random characters; rerankd 0.1 used those of tempfile.mkdtemp.
_NAME = re.compile(rf"{_PREFIX}\d+-[a-z0-9_]{{8}}")
# rerankd 0.1 wrote its pid into this file and took no lock.
_OWNER = "owner.json"
# The notes, and the tiny model of a smoke test.
_FILES = (".json", ".gguf")
# sun_path of unix(7) and of macOS' sys/un.h, less the NUL at its end.
SOCKET_PATH_BYTES = 107 if sys.platform == "linux" else 103
_OWN_BYTES = len("/rerankd-4194304-01234567/012345.sock")
_LOGIN = "/run/user/"


class RunDir:
    """A folder that only this user can enter. `make` creates it, and recreates it if it was removed. Not
    thread-safe."""

    def __init__(self, base: Path | None = None) -> None:
        self._base = base
        self._path: Path | None = None
        self._held: int | None = None

    def make(self) -> Path:
        """Create the folder if it does not exist, and return its path. Raises DataFolderError."""
        if self._path is None or not self._is_there(self._path):
            self._let_go()
            self._path, self._held = _make(_place((self._base,) if self._base else places(os.environ)))
        return self._path

    def socket(self) -> Path:
        """Return a path for a new socket in the folder. Raises DataFolderError."""
        return self.make() / f"{secrets.token_hex(3)}.sock"

    def note(self, pid: int) -> Path:
        """Write a note that the engine `pid` belongs to this service. The caller removes it when the engine
        has exited."""
        assert self._path is not None, "the engine's socket came first"
        path = self._path / f"{pid}.json"
        identity = processes.identify(pid)
        # Without a note, the next service can't find an orphaned engine. On a full disk that is acceptable.
        with contextlib.suppress(OSError):
            path.write_text(json.dumps(asdict(identity)) if identity is not None else "")
        return path

    def remove(self) -> None:
        """Remove the folder and its contents. Does nothing if the folder does not exist."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
        self._path = None
        self._let_go()

    def _is_there(self, path: Path) -> bool:
        """Whether the folder still exists and is the one that was created, not another of the same name."""
        assert self._held is not None
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(self._held), path.lstat())
        return False

    def _let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)
            self._held = None


def make(base: Path | None = None) -> RunDir:
    """Create a run directory in `base`, or in the first usable one of `places`, and clean up after dead
    services there. Raises DataFolderError if it can't be created."""
    folder = RunDir(base)
    sweep(folder.make().parent)
    return folder


def places(environ: Mapping[str, str]) -> Iterator[Path]:
    """Yield the candidates for the parent folder, the best first.

    A login's XDG_RUNTIME_DIR (in /run/user/) is removed at logout, but a background service keeps running. So
    it is used only in a unit of the user's systemd (INVOCATION_ID is set), where the service ends at logout,
    too. Any other value of XDG_RUNTIME_DIR is used.
    """
    if own := environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]:  # set by a unit's RuntimeDirectory=
        yield Path(own)
    given = environ.get("XDG_RUNTIME_DIR", "")
    if given and ("INVOCATION_ID" in environ or not given.startswith(_LOGIN)):
        yield Path(given)
    with contextlib.suppress(OSError):  # no temporary folder is writable
        yield Path(tempfile.gettempdir())
    yield Path("/tmp")


def sweep(base: Path) -> None:
    """Kill the engines of dead services, and remove their folders. Other folders with a similar name or with
    unknown contents are left alone."""
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
    """Whether the folder contains only sockets, notes and a smoke test's model."""
    return all(
        stat.S_ISSOCK(mode) or (stat.S_ISREG(mode) and path.suffix in _FILES)
        for path in folder.iterdir()
        for mode in (path.lstat().st_mode,)
    )


def _place(candidates: Iterable[Path]) -> Path:
    tried: list[str] = []
    for path in candidates:
        if len(os.fsencode(path)) + _OWN_BYTES > SOCKET_PATH_BYTES:
            tried.append(f"{path} (too long for a socket path)")
        elif not os.access(path, os.W_OK | os.X_OK):
            tried.append(f"{path} ({'not writable' if path.exists() else 'does not exist'})")
        else:
            return path
    raise DataFolderError(
        f"rerankd has no folder for its sockets: {', '.join(dict.fromkeys(tried))}. Make /tmp writable (in a "
        "container: a tmpfs), or set XDG_RUNTIME_DIR to a folder with a short path."
    )


def _make(base: Path) -> tuple[Path, int]:
    """Create a folder in `base`. Returns its path and the file descriptor that holds its lock."""
    try:
        # Use a temporary name until it is locked, or a service that starts now would remove it as a dead
        # one's.
        new = Path(tempfile.mkdtemp(prefix=f".{_PREFIX}", dir=base))
        held = _open(new)
        with contextlib.suppress(OSError):  # without locks here, no other service removes it either
            _lock(held)
        folder = base / f"{_PREFIX}{os.getpid()}-{secrets.token_hex(4)}"
        new.rename(folder)
    except OSError as error:
        raise DataFolderError(
            f"rerankd can't create a folder for its sockets in {base}: {error.strerror}. Free some space "
            "there, or set XDG_RUNTIME_DIR to another folder."
        ) from error
    return folder, held


def _open(folder: Path) -> int:
    """Open a folder that this user owns; in /tmp any user can create a folder of that name. Raises
    OSError."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    status = os.fstat(held)
    if status.st_uid != os.getuid() or not stat.S_ISDIR(status.st_mode):
        os.close(held)
        raise PermissionError(errno.EPERM, "another user's folder", str(folder))
    return held


def _lock(held: int) -> bool:
    """Acquire the lock; False if another process holds it. Raises OSError if the file system has no locks, as
    on some NFS."""
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
            _log.warning("killing the engine %d of an earlier run: %s", engine.pid, engine.command)
            processes.end_group(engine.pid)


def _runs(noted: processes.Identity) -> bool:
    now = processes.identify(noted.pid)
    # Ignore the command line: a note written between fork and exec holds that of the parent.
    return now is not None and now.started == noted.started


def _read(path: Path) -> processes.Identity | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return processes.Identity(**json.loads(path.read_text()))
    return None
