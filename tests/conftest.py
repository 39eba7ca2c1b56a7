"""Fixtures that all tests share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rerankd.models import builtin
from support import ROOT, Program, environment


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
    running: list[subprocess.Popen[str]] = []

    def start(*arguments: str, **env: str) -> Program:
        process = subprocess.Popen(
            [sys.executable, "-m", "rerankd", "serve", "--port", "0", *arguments],
            env=environment(home, **env),
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        assert process.stderr is not None
        said: list[str] = []
        for line in process.stderr:
            said.append(line)
            if "API endpoint URL" in line:
                url = line.split()[-1].removesuffix("/v1")
                return Program(process, url, said)
        raise AssertionError(f"it ended with {process.wait()}:\n{''.join(said)}")

    yield start
    for process in running:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()
