"""Shared test helpers: golden models, running programs and servers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from rerankd.api.app import create_app
from rerankd.backends.base import Backend, Batch
from rerankd.backends.llama import installed
from rerankd.config import Settings
from rerankd.scoring import deduplicate
from rerankd.scoring.engine_input import Input
from rerankd.service import Reranker

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
# Where `make engine` builds. Other tests use another data folder and the bundled engine.
ENGINE_HOME = ROOT / ".test-home" / "engine-build"


def golden(name: str) -> dict[str, Any]:
    """The reference results of a golden model."""
    value: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return value


def golden_settings(name: str, home: Path, **more: Any) -> Settings:
    """Settings that serve a golden model with the recipe of its reference results and no score cache."""
    values = golden(name)
    scoring: dict[str, Any] = {}
    if values["way"] == "judge":
        scoring = {"template": "\x1e".join(values["pieces"]), "labels": values["labels"]}
        if values["instruction"]:
            scoring["instruction"] = values["instruction"]
    if values["way"] == "cosine":
        scoring = {key: values[key] for key in ("query_prefix", "document_prefix")}
    scoring |= more.pop("scoring", {})
    path = str(GOLDEN / values["model"])
    return Settings.model_validate(
        {"model": path, "home": home, "scoring": scoring, "cache_entries": 0, **more}
    )


@contextlib.asynccontextmanager
async def asking(reranker: Reranker) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the app with this reranker, without a socket."""
    transport = httpx.ASGITransport(create_app(reranker=reranker))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
        yield client


async def inputs(
    reranker: Reranker, query: str, texts: Sequence[str], instruction: str | None = None
) -> list[Input]:
    """The engine inputs of texts for a query, for the first model."""
    reader = await reranker.registry.find(None).reader()
    clean = [deduplicate.clean(text, nfc=reader.recipe.nfc) for text in texts]
    return await reader.plain(query, clean, instruction)


async def batch(
    reranker: Reranker, query: str, texts: Sequence[str], instruction: str | None = None
) -> Batch:
    """The same inputs as one batch."""
    return Batch(tuple(await inputs(reranker, query, texts, instruction)))


async def count_tokens(reranker: Reranker, *texts: str) -> list[int]:
    """The number of tokens of each text, without special tokens."""
    reader = await reranker.registry.find(None).reader()
    return [len(ids) for ids in await reader.tokenizer.encode(texts)]


def options_of(backend: Backend) -> Any:
    """Settings with which a backend runs models."""
    return backend.Options(**({"precision": "int8"} if backend.name == "onnx" else {}))


def native_engine() -> str:
    """The llama-server that `make engine` has built, "" if there is none."""
    found = installed.Engines(ENGINE_HOME).all()
    return str(found[0].program) if found else ""


@dataclass
class Program:
    """A running rerankd process and its URL. `said` are its log lines up to the message of the start. The web
    server, which is imported meanwhile, may log later (see `ended`)."""

    process: subprocess.Popen[str]
    url: str
    said: list[str]

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)

    def ended(self) -> list[str]:
        """Stop it. Returns all of its log lines."""
        self.process.terminate()
        return [*self.said, *self.process.communicate(timeout=30)[1].splitlines(keepends=True)]


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of this process without rerankd settings, and with a data folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RERANKD_", "LLAMA_"))}
    return {**kept, "RERANKD_HOME": str(home), "PYTHONUNBUFFERED": "1", **more}


def start_serving(home: Path, *arguments: str, inside: Sequence[str] = (), **env: str) -> Program:
    """Start `rerankd serve` and wait until it serves. The caller stops it and closes its standard error.

    `inside` is a command line prefix that runs it in a sandbox (see sandbox.py).
    """
    process = subprocess.Popen(
        [*inside, sys.executable, "-m", "rerankd", "serve", "--port", "0", *arguments],
        env=environment(home, **env),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    for line in process.stderr:
        said.append(line)
        if "API endpoint URL" in line:
            return Program(process, line.split()[-1].removesuffix("/v1"), said)
    process.stderr.close()
    raise AssertionError(f"rerankd exited with {process.wait()}:\n{''.join(said)}")


def rerankd(
    *arguments: str, home: Path, stdin: str | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run the command and wait for its exit."""
    return subprocess.run(
        [sys.executable, "-m", "rerankd", *arguments],
        env=environment(home, **env),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )


def suspend(pid: int) -> None:
    """Send SIGSTOP, and wait until all threads of the process have stopped: for a moment they go on."""
    os.kill(pid, signal.SIGSTOP)
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread may end before it stops
            while stat.read_text().rpartition(")")[2].split()[0] != "T":
                os.sched_yield()


@contextlib.contextmanager
def running(app: Any, **more: Any) -> Iterator[str]:
    """Serve an app with uvicorn in a thread; yields its URL. `more` are options of uvicorn's Config."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, **more))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        while not server.started and thread.is_alive():
            thread.join(0.01)
        assert server.started, "the app did not start"
        try:
            yield f"http://127.0.0.1:{sock.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def post(url: str, body: Any, **headers: str) -> httpx.Response:
    """POST JSON to a running server."""
    return httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False)


def children(pid: int) -> list[int]:
    """The pids of a process's children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(word) for word in text.split()]


def until(true: Callable[[], object], timeout_s: float = 10) -> None:
    """Wait until `true()` returns a true value."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"not true after {timeout_s} s"
        time.sleep(0.005)


def wait_until_gone(pids: list[int], within_s: float = 10) -> None:
    """Wait for processes that are not our children to exit. An unreaped zombie counts as exited."""
    end = time.monotonic() + within_s
    while left := [pid for pid in pids if _runs(pid)]:
        assert time.monotonic() < end, f"processes {left} are still running"
        os.sched_yield()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it exited before or during the read
        return False
