"""Records of the running servers, for the commands that look for one: files in the data folder.

A record counts while its process runs: pid and start time say so, since the system reuses pids. A server in
another container may share the data folder but not the pids, so records of other hosts are left alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rerankd import processes
from rerankd.files import write_whole


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `unit` is the systemd unit that it runs in, if any. `since` is a UNIX time."""

    pid: int
    started: str
    host: str
    url: str
    log: str
    unit: str
    since: float

    @property
    def runs(self) -> bool:
        """Whether the process still runs."""
        now = processes.identify(self.pid)
        return self.host == socket.gethostname() and now is not None and now.started == self.started


@contextlib.contextmanager
def recorded(home: Path, url: str, log: Path) -> Iterator[None]:
    """Keep a record of this process. Without space or permission for it the server runs all the same, and the
    commands do not find it."""
    own = processes.identify(os.getpid())
    path = _folder(home) / f"{os.getpid()}.json"
    if own is None:
        yield
        return
    server = Server(own.pid, own.started, socket.gethostname(), url, str(log), unit(), time.time())
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        for old in path.parent.glob("*.json"):
            if (left := _read(old)) is not None and left.host == server.host and not left.runs:
                old.unlink(missing_ok=True)
        write_whole(path, json.dumps(asdict(server)).encode())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def running(home: Path) -> list[Server]:
    """Return the servers that run with this data folder, the oldest first. Raises OSError if their records
    can't be read."""
    found = [_read(path) for path in sorted(_folder(home).glob("*.json"))]
    return sorted((one for one in found if one is not None and one.runs), key=lambda one: one.since)


def unit() -> str:
    """Return the systemd unit of this process, "" outside of one."""
    if "INVOCATION_ID" not in os.environ:
        return ""
    with contextlib.suppress(OSError):
        name = Path("/proc/self/cgroup").read_text().splitlines()[-1].rpartition("/")[2]
        return name if name.endswith(".service") else ""
    return ""


def _folder(home: Path) -> Path:
    return home / "run"


def _read(path: Path) -> Server | None:
    with contextlib.suppress(ValueError, TypeError, FileNotFoundError, IsADirectoryError):
        found = Server(**json.loads(path.read_bytes()))
        if isinstance(found.pid, int) and isinstance(found.since, int | float):
            return found
    return None
