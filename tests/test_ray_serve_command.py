"""`rerankd ray serve` as a process, with a cluster of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

pytest.importorskip("ray", reason="no Ray here: make test-ray")

import fake_engine
from faults.served import MODEL

pytestmark = pytest.mark.timeout(240)


@contextmanager
def started(folder: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("RERANKD", "RAY_"))}
    environ |= {
        "RERANKD_HOME": str(folder / "home"),
        "RERANKD_LLAMA_PATH": str(fake_engine.install(folder)),
        "RERANKD_RAY_MEMORY": "1",
        "RERANKD_RAY_CPUS": "0.1",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "ray", "serve", str(MODEL), "--port", str(port)],
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.terminate()


def test_a_stop_signal_ends_it_as_on_one_machine(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with started(tmp_path, port) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(2)]
        assert said[0].endswith(f"serves through Ray at http://127.0.0.1:{port}\n"), said
        assert httpx.get(f"http://127.0.0.1:{port}/health", timeout=60, trust_env=False).status_code == 200
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
        assert process.returncode == 0
        assert rest.splitlines()[:2] == ["Finishing the requests in progress.", "rerankd has stopped."]


def test_a_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with started(tmp_path, port) as process:
            _, said = process.communicate(timeout=120)
    assert process.returncode == 6
    assert said.startswith(f"rerankd: Ray can't serve at 127.0.0.1:{port}: ")
