"""Inspect and kill processes: identity (pid reuse), RSS, OOM kills, process groups; run short programs.

It reads /proc on Linux and runs `ps` elsewhere. A pid alone does not identify a process, because the system
reuses pids; pid and start time together do.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUP_EVENTS = Path("/sys/fs/cgroup/memory.events")
_PS_TIMEOUT_S = 2.0
_LOOK_AGAIN_S = 0.01
_MOST_LOOKS = 200


@dataclass(frozen=True, slots=True)
class Identity:
    """Identifies a process. `started` is its start time in the system's format, only for comparison.
    `command` is the command line, joined by spaces."""

    pid: int
    started: str
    command: str


def identify(pid: int) -> Identity | None:
    """Return the identity of the process with this pid, or None if no such process is running."""
    if (_PROC / "self" / "stat").exists():
        with contextlib.suppress(OSError):
            command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ")
            started = _stat(pid, 22)
            return Identity(pid, started, command.decode(errors="replace").strip()) if started else None
        return None
    words = _ps(pid, "lstart=", "command=")
    # lstart has five words: Mon Nov 23 01:45:31 2026
    return Identity(pid, " ".join(words[:5]), " ".join(words[5:])) if len(words) > 5 else None


def memory_bytes(pid: int) -> int | None:
    """Return the RSS of a process, including resident pages of a mapped model file, or None if unknown."""
    if (_PROC / "self" / "statm").exists():
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return None
    words = _ps(pid, "rss=")
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def give_back() -> None:
    """Return this process's freed memory to the system (malloc_trim). Only glibc holds it back."""
    import ctypes  # deferred: 2 ms, and few commands need it

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_kills() -> int:
    """Return how many processes the OOM killer has killed, in this container if it counts them, else on this
    machine; 0 if unknown."""
    for path in (_CGROUP_EVENTS, _PROC / "vmstat"):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def private_bytes(pid: int) -> int | None:
    """Return the RSS of a process without mapped files, such as an engine's memory besides its model file, or
    None if unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, resident, shared = (_PROC / str(pid) / "statm").read_text().split()[:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return None


def end_group(pid: int) -> None:
    """Send SIGKILL to the process group of `pid`. Does nothing if it does not exist."""
    if pid > 1:  # 0 would be our own group, 1 all processes
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def end_session(leader: int) -> None:
    """Send SIGKILL to all processes of the session of `leader`, in any process group, even if the leader has
    exited. On systems without /proc, send it to the leader's process group."""
    if not (_PROC / "self" / "stat").exists():
        end_group(leader)
        return
    for _ in range(_MOST_LOOKS):
        members = [pid for pid in _pids() if _stat(pid, 6) == str(leader)]
        if not members:
            return
        for pid in members:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        # A killed process may just have started another one, which the next iteration finds.
        time.sleep(_LOOK_AGAIN_S)


def children() -> list[int]:
    """Return the pids of this process's children; [] on systems without /proc."""
    own = str(os.getpid())
    return [pid for pid in _pids() if _stat(pid, 4) == own] if (_PROC / "self" / "stat").exists() else []


def uses_gpu(pid: int) -> bool:
    """Whether a process has a GPU of NVIDIA's driver open, also in WSL. False on systems without /proc."""
    with contextlib.suppress(OSError):
        names = [os.readlink(one) for one in (_PROC / str(pid) / "fd").iterdir()]
        return any(name.startswith(("/dev/nvidia", "/dev/dxg")) for name in names)
    return False


def _pids() -> list[int]:
    return [int(path.name) for path in _PROC.iterdir() if path.name.isdigit()]


def _stat(pid: int, field: int) -> str:
    """Return a field of /proc/PID/stat by its number from 1, or "" if the process has exited."""
    with contextlib.suppress(OSError, IndexError, UnicodeDecodeError):
        # The second field is the program's name in parentheses, which may hold spaces and parentheses.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[field - 3]
    return ""


def output(argv: Sequence[str], timeout_s: float) -> str:
    """Run a short program, and return its standard output and error, or "" if it can't run or times out."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
        return done.stdout
    return ""


def _ps(pid: int, *columns: str) -> list[str]:
    options = [word for column in columns for word in ("-o", column)]
    return output(["ps", *options, "-p", str(pid)], _PS_TIMEOUT_S).split()
