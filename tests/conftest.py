"""Fixtures that all tests share."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest
from filelock import FileLock

from rerankd.hub import builtin
from rerankd.service import Reranker
from support import ROOT, Program, asking, start_serving

# By default an example fails after 200 ms, and a test that makes examples slowly: a busy machine is no bug.
hypothesis.settings.register_profile(
    "rerankd", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("rerankd")

# A shell that runs them in the background ignores SIGINT, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def home() -> Path:
    """A data folder with the built-in model in it, as the first start makes it; kept between test runs."""
    folder = ROOT / ".test-home"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "models.lock"):  # other test processes need it too
        builtin.ensure(folder / "models", lambda *_: None)
    return folder


@pytest.fixture(scope="module")
async def client(reranker: Reranker) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client of the module's own fixture `reranker`."""
    async with asking(reranker) as http:
        yield http


@pytest.fixture
def serve(home: Path) -> Iterator[Callable[..., Program]]:
    """Start `rerankd serve` with arguments and environment; returns once it says that it serves."""
    running: list[Program] = []

    def start(*arguments: str, **env: str) -> Program:
        running.append(start_serving(home, *arguments, **env))
        return running[-1]

    yield start
    for program in running:
        program.process.kill()
        program.process.wait()
        if program.process.stderr is not None:
            program.process.stderr.close()
