"""What the system says of a process (when it started, its command line, its memory), and of a short program.

Linux has /proc; elsewhere `ps` is asked. A pid alone names nothing, since the system gives it to another
process later: with the start time it does.
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
    """`started` is the system's own word for the time (only good for comparing); `command` the command line,
    its words joined by spaces."""

    pid: int
    started: str
    command: str


def identify(pid: int) -> Identity | None:
    """Who runs under this pid; None where nobody does, or nobody that still runs."""
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
    """Memory that the process holds now, the model's file as far as it is mapped in included; None where it
    can't be told."""
    if (_PROC / "self" / "statm").exists():
        with contextlib.suppress(OSError, ValueError, IndexError):
            return int((_PROC / str(pid) / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return None
    words = _ps(pid, "rss=")
    return int(words[0]) * 1024 if words and words[0].isdigit() else None


def give_back() -> None:
    """Return memory that this process has freed to the system. Only glibc keeps it, and can be told to."""
    import ctypes  # 2 ms, and few commands need it

    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def memory_kills() -> int:
    """How many processes the system has killed because memory ran out, in this container where it counts
    them, else on this machine; 0 where it does not tell."""
    for path in (_CGROUP_EVENTS, _PROC / "vmstat"):
        with contextlib.suppress(OSError, ValueError):
            for line in path.read_text().splitlines():
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def private_bytes(pid: int) -> int | None:
    """Memory of the process that is no file's: what an engine holds beside the file that it has mapped; None
    where it can't be told."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        _, resident, shared = (_PROC / str(pid) / "statm").read_text().split()[:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")
    return None


def end_group(pid: int) -> None:
    """SIGKILL to the process group that `pid` leads; nothing happens where there is none."""
    if pid > 1:  # 0 is our own group, 1 is everybody
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


def end_session(leader: int) -> None:
    """SIGKILL to every process of the session that `leader` began, whatever its group is, and whether or not
    the leader still runs. Where the system can't list them, SIGKILL to the leader's group."""
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
        # One that was about to start another is gone now; the other is found by the next look.
        time.sleep(_LOOK_AGAIN_S)


def _pids() -> list[int]:
    return [int(path.name) for path in _PROC.iterdir() if path.name.isdigit()]


def _stat(pid: int, field: int) -> str:
    """A field of what Linux tells of a process, by its number from 1; "" where it has ended."""
    with contextlib.suppress(OSError, IndexError, UnicodeDecodeError):
        # The second field is the program's name in parentheses, which may hold spaces and parentheses.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[field - 3]
    return ""


def output(argv: Sequence[str], timeout_s: float) -> str:
    """What a program that ends soon writes, to standard output and error; "" where it can't be run."""
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
