"""The service that bench/gpu.py measures: start it, load it, and read what it and the GPU did meanwhile."""

from __future__ import annotations

import bisect
import contextlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpu_load import Found, Task

_SERVES = re.compile(r"\bserves \S.* at http://\S+:(\d+)")
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_COMPILED = re.compile(r"^(?:not )?compiled\b.*", re.MULTILINE)
_LOOK_S = 0.05


class Failed(Exception):
    """A measurement has no result. The message says why."""


@dataclass(frozen=True)
class Service:
    """A running `rerankd serve`. `engine_logs`: the logs of its engines, and their sizes at its start."""

    process: subprocess.Popen[bytes]
    port: int
    ready_s: float
    engine_logs: Mapping[Path, int]

    @property
    def pid(self) -> int:
        return self.process.pid

    def workers(self) -> list[int]:
        """The process ids of its engines."""
        return [pid for pid in _descendants(self.pid) if b"rerankd.backends" in _read(f"/proc/{pid}/cmdline")]

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return json.load(answer)

    def post(self, fields: Mapping[str, Any]) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/rerank",
            json.dumps(fields).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    def compiled(self, within_s: float) -> list[str]:
        """Wait for PyTorch's compilers, which work while the models serve. Returns what each reports; none if
        no engine compiles."""
        expected = sum(b"--compile" in _read(f"/proc/{pid}/cmdline") for pid in self.workers())
        until = time.monotonic() + within_s
        while len(found := self._reports()) < expected:
            if time.monotonic() > until:
                return [*found, f"{expected - len(found)} not compiled after {within_s:.0f} s"]
            time.sleep(4 * _LOOK_S)
        return found

    def _reports(self) -> list[str]:
        found = []
        for log, start in self.engine_logs.items():
            if log.exists():
                found += _COMPILED.findall(log.read_bytes()[start:].decode(errors="replace"))
        return found


@contextlib.contextmanager
def serving(
    models: Sequence[Path], home: Path, within_s: float, *flags: str, **environment: str
) -> Iterator[Service]:
    """Run the service with these models, its data below `home` (kept, as a user's is, between starts)."""
    logs = [home / "logs" / f"{one.name}.log" for one in models]
    sizes = {one: one.stat().st_size if one.exists() else 0 for one in logs}
    log = Path(tempfile.mkstemp(prefix="serve-", suffix=".log", dir=home)[1])
    argv = [sys.executable, "-m", "rerankd", "serve", *map(str, models), "--port", "0", *flags]
    started = time.perf_counter()
    with log.open("wb") as stream:
        process = subprocess.Popen(
            argv, stdout=stream, stderr=stream, env={**os.environ, "RERANKD_HOME": str(home), **environment}
        )
    try:
        while (found := _SERVES.search(log.read_text(errors="replace"))) is None:
            took = time.perf_counter() - started
            if process.poll() is not None or took > within_s:
                raise Failed(f"the service is not ready after {took:.0f} s:\n{log.read_text()[-2000:]}")
            time.sleep(_LOOK_S)
        ready_s = time.perf_counter() - started
        print(f"{', '.join(one.name for one in models)}: ready in {ready_s:.1f} s", flush=True)
        yield Service(process, int(found[1]), ready_s, sizes)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@dataclass(frozen=True)
class Loaded:
    """What one load did. Seconds of CPU are those of all threads; `load` is the load generator's."""

    found: Found
    service_cpu_s: float
    worker_cpu_s: float
    load_cpu_s: float
    gpu_busy: float | None
    gpu_watts: float | None

    @property
    def pairs_per_s(self) -> float:
        return self.found.pairs / self.found.elapsed_s

    def percentile(self, share: float) -> float:
        """A percentile of the latencies in ms."""
        found = sorted(self.found.latencies_ms)
        return found[min(len(found) - 1, int(share * len(found)))] if found else float("inf")


def apply(
    service: Service, task: Task, processes: int, gpu: Gpu, during: Callable[[], None] | None = None
) -> Loaded:
    """Send a load from several processes. Those of `task` are for all together.
    `during` is called while they are sent."""
    tasks = [
        replace(
            task,
            port=service.port,
            connections=-(-task.connections // processes),
            rate=task.rate / processes,
            bodies=-(-task.bodies // processes),
            seed=task.seed * processes + at,
        )
        for at in range(processes)
    ]
    programs = [_generator(one) for one in tasks]
    try:
        for program in programs:
            assert program.stdout is not None
            if program.stdout.readline() != "ready\n":
                raise Failed("a load generator ended")
        workers = service.workers()
        before, started = (_cpu_s([service.pid]), _cpu_s(workers)), time.time()
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        if during is not None:
            during()
        parts = [Found(**json.loads(_line(program))) for program in programs]
        after, ended = (_cpu_s([service.pid]), _cpu_s(workers)), time.time()
    finally:
        for program in programs:
            program.kill()
            program.wait()
    whole = Found(
        [one for part in parts for one in part.latencies_ms],
        sum(part.pairs for part in parts),
        [one for part in parts for one in part.failed],
        max(part.elapsed_s for part in parts),
    )
    busy, watts = gpu.mean(started, ended)
    return Loaded(
        whole, after[0] - before[0], after[1] - before[1], sum(part.cpu_s for part in parts), busy, watts
    )


def _generator(task: Task) -> subprocess.Popen[str]:
    program = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("gpu_load.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    program.stdin.write(json.dumps(asdict(task)) + "\n")
    program.stdin.flush()
    return program


def _line(program: subprocess.Popen[str]) -> str:
    assert program.stdout is not None
    line = program.stdout.readline()
    if not line:
        raise Failed("a load generator ended without a result")
    return line


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
    fields = [_read(f"/proc/{pid}/statm").split() for pid in pids]
    return sum(int(one[1]) * _PAGE for one in fields if one) / 2**20


def _cpu_s(pids: Sequence[int]) -> float:
    found = 0
    for pid in pids:
        fields = _read(f"/proc/{pid}/stat").rpartition(b")")[2].split()
        found += int(fields[11]) + int(fields[12]) if fields else 0
    return found / _TICKS


def _descendants(pid: int) -> list[int]:
    found = [int(one) for one in _read(f"/proc/{pid}/task/{pid}/children").split()]
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += [int(one) for one in _read(f"{thread}/children").split()]
    mine = list(dict.fromkeys(found))
    return [*mine, *(one for child in mine for one in _descendants(child))]


def _read(path: str) -> bytes:
    """The contents of a file of /proc; nothing if the process has ended."""
    with contextlib.suppress(OSError):
        return Path(path).read_bytes()
    return b""
