"""The real service as a process, for fault tests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

import fake_engine

GOLDEN = Path(__file__).parents[1] / "golden"
MODEL = GOLDEN / "xlmr-head.gguf"
_STARTED = re.compile(r"serves .+ at (http://\S+)")


class Service:
    """One `rerankd serve`: its process, its address and its output."""

    def __init__(self, process: subprocess.Popen[str], runtime: Path) -> None:
        self.process = process
        self.runtime = runtime
        self.lines: list[str] = []
        self.url = ""
        self._up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if found := _STARTED.search(line):
                self.url = found.group(1).replace("localhost", "127.0.0.1")
                self._up.set()
        self._up.set()

    def wait_up(self, timeout_s: float = 60) -> None:
        assert self._up.wait(timeout_s), self.output
        assert self.url, self.output

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def get(self, path: str, **headers: str) -> httpx.Response:
        with self.client() as client:
            return client.get(path, headers=headers)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        with self.client() as client:
            return client.post(path, json=body, headers=headers)

    def rerank(self, documents: list[str], query: str = "q", **headers: str) -> httpx.Response:
        body = {"query": query, "documents": documents, "raw_scores": True}
        return self.post("/v1/rerank", body, **headers)

    def metric(self, name: str) -> float:
        """The value of a metric: the sum over its labels."""
        found = re.findall(rf"^{name}(?:{{.*}})? (\S+)$", self.get("/metrics").text, re.MULTILINE)
        assert found, name
        return sum(map(float, found))

    def engines(self) -> list[int]:
        """The process ids of its engines, from the notes in its runtime folder."""
        return [int(path.stem) for path in self.runtime.glob("rerankd-*/[0-9]*.json")]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def ended(self, timeout_s: float = 30) -> int:
        """Wait until the process exits. Returns the exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code


@contextlib.contextmanager
def service(
    folder: Path,
    *flags: str,
    real: bool = False,
    wait: bool = True,
    under: Sequence[str] = (),
    **settings: Any,
) -> Iterator[Service]:
    """The service with settings by name, with the fake engine and these flags, or with the real one; `under`
    is a program that starts it."""
    runtime = _runtime(folder)
    runtime.mkdir(mode=0o700, exist_ok=True)
    settings = {"model": MODEL, "home": folder / "home", "port": 0, **settings}
    if not real:
        settings.setdefault("llama_path", fake_engine.install(folder, *flags))
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RERANKD", "LLAMA"))}
    environ |= {f"RERANKD_{name.upper()}": str(value) for name, value in settings.items()}
    environ["XDG_RUNTIME_DIR"] = str(runtime)
    process = subprocess.Popen(
        [*under, sys.executable, "-m", "rerankd", "serve"],
        env=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    running = Service(process, runtime)
    try:
        if wait:
            running.wait_up()
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        running.ended()
        assert process.stderr is not None
        process.stderr.close()
        with contextlib.suppress(OSError):  # the next service removes the folder of one that was killed
            runtime.rmdir()


def _runtime(folder: Path) -> Path:
    """The runtime folder for `folder`: a short path, because a socket path has at most 107 bytes and pytest's
    folders are long."""
    return Path("/tmp") / f"rd-{hashlib.blake2b(os.fsencode(folder), digest_size=6).hexdigest()}"


def right(documents: list[str], query: str = "q") -> dict[int, float]:
    """The fake engine's scores."""
    return {at: fake_engine.raw(query, text) for at, text in enumerate(documents)}


def raw_scores(answer: httpx.Response) -> dict[int, float]:
    return {row["index"]: row["relevance_score"] for row in answer.json()["results"]}
