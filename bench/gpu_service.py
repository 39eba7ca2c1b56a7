"""The service that bench/gpu.py measures: start it, load it, and read what it and the GPU did meanwhile."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpu_load import Found, Task
from gpu_meters import Gpu, cpu_s, descendants, read

_SERVES = re.compile(r"\bserves \S.* at http://\S+:(\d+)")
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
        return [pid for pid in descendants(self.pid) if b"rerankd.backends" in read(f"/proc/{pid}/cmdline")]

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
        expected = sum(b"--compile" in read(f"/proc/{pid}/cmdline") for pid in self.workers())
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


@dataclass
class Start:
    """A `rerankd serve` that is starting. Several may start at once, which saves most of the time."""

    models: Sequence[Path]
    process: subprocess.Popen[bytes]
    log: Path
    engine_logs: Mapping[Path, int]
    started: float
    service: Service | None = None

    def look(self) -> bool:
        """Whether it serves. Raises Failed if it ended."""
        said = self.log.read_text(errors="replace")
        if self.service is None and (found := _SERVES.search(said)):
            ready_s = time.perf_counter() - self.started
            print(f"{', '.join(one.name for one in self.models)}: ready in {ready_s:.1f} s", flush=True)
            self.service = Service(self.process, int(found[1]), ready_s, self.engine_logs)
        if self.process.poll() is not None:
            raise Failed(f"the service ended:\n{said[-2000:]}")
        return self.service is not None


@contextlib.contextmanager
def starting(models: Sequence[Path], home: Path, *flags: str, **environment: str) -> Iterator[Start]:
    """Start the service with these models, its data below `home`. It is stopped at the end."""
    logs = [home / "logs" / f"{one.name}.log" for one in models]
    sizes = {one: one.stat().st_size if one.exists() else 0 for one in logs}
    log = Path(tempfile.mkstemp(prefix="serve-", suffix=".log", dir=home)[1])
    argv = [sys.executable, "-m", "rerankd", "serve", *map(str, models), "--port", "0", *flags]
    variables = {**os.environ, "RERANKD_HOME": str(home), **environment}
    with log.open("wb") as stream:
        process = subprocess.Popen(argv, stdout=stream, stderr=stream, env=variables)
    try:
        yield Start(models, process, log, sizes, time.perf_counter())
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait(starts: Sequence[Start], within_s: float) -> None:
    """Wait until all serve, have ended or took too long."""
    waiting, until = list(starts), time.monotonic() + within_s
    while waiting and time.monotonic() < until:
        for one in list(waiting):
            with contextlib.suppress(Failed):
                if not one.look():
                    continue
            waiting.remove(one)
        time.sleep(_LOOK_S)


@contextlib.contextmanager
def serving(
    models: Sequence[Path], home: Path, within_s: float, *flags: str, **environment: str
) -> Iterator[Service]:
    """Run the service with these models."""
    with starting(models, home, *flags, **environment) as start:
        wait([start], within_s)
        yield ready(start)


def ready(start: Start) -> Service:
    """The service, after `wait`. Raises Failed with its last lines if it does not serve."""
    if not start.look() or start.service is None:
        raise Failed(f"the service is not ready:\n{start.log.read_text(errors='replace')[-2000:]}")
    return start.service


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
        before, started = (cpu_s([service.pid]), cpu_s(workers)), time.time()
        for program in programs:
            assert program.stdin is not None
            program.stdin.write("\n")
            program.stdin.flush()
        if during is not None:
            during()
        parts = [Found(**json.loads(_line(program))) for program in programs]
        after, ended = (cpu_s([service.pid]), cpu_s(workers)), time.time()
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
