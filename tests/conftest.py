"""Fixtures that all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rerankd.models import builtin
from support import ROOT, Program, start_serving


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def home() -> Path:
    """A data folder with the built-in model in it, as the first start makes it; kept between test runs."""
    folder = ROOT / ".test-home"
    builtin.ensure(folder / "models", lambda *_: None)
    return folder


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
