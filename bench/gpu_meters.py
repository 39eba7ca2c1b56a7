"""What bench/gpu.py reads of the machine: the GPU's load, and CPU time and memory of processes."""

from __future__ import annotations

import bisect
import contextlib
import os
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Gpu:
    """Reads the GPU's load four times a second with nvidia-smi, where there is one."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._values: list[tuple[float, float, float]] = []
        program = shutil.which("nvidia-smi")
        self._process: subprocess.Popen[str] | None = None
        if program is None:
            return
        query = "utilization.gpu,power.draw,memory.used"
        argv = [program, f"--query-gpu={query}", "--format=csv,noheader,nounits", "--loop-ms=250", "--id=0"]
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        threading.Thread(target=self._collect, daemon=True).start()

    def _collect(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # "[N/A]" where the driver does not tell
                busy, watts, mebibytes = map(float, line.split(","))
                self._values.append((busy, watts, mebibytes))
                self._times.append(time.time())

    def mean(self, since: float, until: float) -> tuple[float | None, float | None]:
        """The mean share of time in which it was busy, and the mean power in watts."""
        some = self._values[bisect.bisect(self._times, since) : bisect.bisect(self._times, until)]
        if not some:
            return None, None
        return statistics.mean(one[0] for one in some) / 100, statistics.mean(one[1] for one in some)

    def memory_mib(self) -> float | None:
        """The memory in use at the last look."""
        return self._values[-1][2] if self._values else None

    def close(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()


def rss_mib(pids: Sequence[int]) -> float:
    """The resident memory of processes."""
    fields = [read(f"/proc/{pid}/statm").split() for pid in pids]
    return sum(int(one[1]) * _PAGE for one in fields if one) / 2**20


def cpu_s(pids: Sequence[int]) -> float:
    found = 0
    for pid in pids:
        fields = read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        found += int(fields[11]) + int(fields[12]) if fields else 0
    return found / _TICKS


def descendants(pid: int) -> list[int]:
    found = [int(one) for one in read(f"/proc/{pid}/task/{pid}/children").split()]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += [int(one) for one in read(f"{thread}/children").split()]
    mine = list(dict.fromkeys(found))
    return [*mine, *(one for child in mine for one in descendants(child))]


def read(path: str) -> bytes:
    """The contents of a file of /proc; nothing if the process has ended."""
    with contextlib.suppress(OSError):
        return Path(path).read_bytes()
    return b""
