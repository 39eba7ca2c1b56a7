"""A live server (`rerankd serve` with a tiny model), and a runner for client programs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import venvs
from live import DOCUMENTS, QUERY, Run, Server, StartServer

_HERE = Path(__file__).parent
_MODEL = _HERE.parent / "golden" / "xlmr-head.gguf"
_TIMEOUT_S = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test of an environment creates it, which takes one or two minutes."""
    for item in items:
        if _HERE in item.path.parents and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(600))


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """Start `rerankd serve` with additional arguments, and wait until it listens."""
    running: list[tuple[subprocess.Popen[str], threading.Thread]] = []

    def start(*arguments: str, key: str = "", **environ: str) -> Server:
        home = tmp_path_factory.mktemp("home")
        process = subprocess.Popen(
            [sys.executable, "-m", "rerankd", "serve", str(_MODEL), "--port", "0", *arguments],
            env={
                **_environ(),
                **environ,
                "RERANKD_HOME": str(home),
                **({"RERANKD_API_KEY": key} if key else {}),
                # What comes from the cache counts no tokens, and the tests repeat themselves.
                "RERANKD_CACHE_ENTRIES": "0",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        said: list[str] = []
        listening = threading.Event()

        def read() -> None:
            assert process.stderr is not None
            with process.stderr:
                for line in process.stderr:
                    said.append(line)
                    if " serves " in line:
                        listening.set()
            listening.set()  # it ended

        reader = threading.Thread(target=read)
        reader.start()
        running.append((process, reader))
        assert listening.wait(_TIMEOUT_S), "".join(said)
        port = re.search(r" at http://\S+:(\d+)", "".join(said))
        assert port, "".join(said)
        return Server(f"http://127.0.0.1:{port[1]}", key)

    yield start
    for process, reader in running:
        process.terminate()
        process.wait(_TIMEOUT_S)
        reader.join(_TIMEOUT_S)


@pytest.fixture(scope="session")
def server(start_server: StartServer) -> Server:
    """A server without an API key."""
    return start_server()


@pytest.fixture(scope="session")
def guarded(start_server: StartServer) -> Server:
    """A server with an API key."""
    return start_server(key="secret-key")


@pytest.fixture(scope="session")
def run() -> Run:
    """Runs a program of the table and returns what it printed, as JSON.

    The program gets one argument, JSON with `urls` (what the table has a user type in, for each of its
    calls), `key`, `query`, `documents` and what else the test gives. `slash` is put behind the URLs.
    """

    def run_program(program: str, server: Server, slash: str = "", **more: Any) -> Any:
        rows = [row for row in venvs.TABLE["clients"] if row.get("program") == program]
        environment = rows[0]["environment"]
        urls = {row["call"]: server.url + row["url"] + slash for row in rows}
        task = {"urls": urls, "key": server.key, "query": QUERY, "documents": DOCUMENTS, **more}
        if environment == "npm":
            argv = ["node", str(_HERE / "programs" / program)]
            node = str(venvs.node_modules())
        else:
            # -P: the folder of programs does not hide the packages that they are named after.
            argv = [str(venvs.python(environment)), "-P", str(_HERE / "programs" / program)]
            node = None
        done = subprocess.run(
            [*argv, json.dumps(task)],
            cwd=node,
            env=_environ(),
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return json.loads(done.stdout.splitlines()[-1])

    return run_program


def _environ() -> dict[str, str]:
    """The environment without rerankd's settings and proxies, and with telemetry and look-ups off."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RERANKD_", "LLAMA_")) and not name.lower().endswith("_proxy")
    }
    return {
        **kept,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "HAYSTACK_TELEMETRY_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }
