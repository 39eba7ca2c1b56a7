"""`rerankd status` with and without a running server."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from rerankd.cli.tables import block
from support import GOLDEN, children, environment, post, rerankd, until
from test_cli import Serve

XLMR = str(GOLDEN / "xlmr-head.gguf")


def test_it_shows_models_queues_and_statistics(serve: Serve, home: Path) -> None:
    program = serve(XLMR, "--alias", "tiny", RERANKD_API_KEY="secret")
    assert "Open this address in a browser" in "".join(program.said)
    port = program.url.rpartition(":")[2]
    post(f"{program.url}/v1/rerank", {"query": "q", "documents": ["a"]}, authorization="Bearer secret")
    place = {"RERANKD_PORT": port, "RERANKD_API_KEY": "secret"}
    ended = rerankd("status", home=home, **place)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split("\t")[:4] == ["tiny", "ready", "cross_encoder", "256"]
    assert "requests in the last 10 minutes: 1; p95 latency" in ended.stderr
    assert "tiny: self-test agrees with llama.cpp b" in ended.stderr
    as_json = rerankd("status", "--json", home=home, **place)
    (model,) = json.loads(as_json.stdout)["models"]
    assert (model["id"], model["engine"]["starts"]) == ("tiny", 1)
    refused = rerankd("status", home=home, RERANKD_PORT=port)
    assert (refused.returncode, "The API key is missing or wrong" in refused.stderr) == (1, True)
    # On a terminal: a table with a header if it is wide enough, else a few lines for each model.
    assert "tokens/s" in on_terminal(environment(home, **place, COLUMNS="400")).splitlines()[0]
    narrow = on_terminal(environment(home, **place, COLUMNS="80")).splitlines()
    assert narrow[0] == "tiny  ready"
    assert "method cross_encoder, max_length 256, " in narrow[1]
    assert all(len(line) <= 80 for line in narrow)
    (engine,) = children(program.process.pid)
    os.kill(engine, signal.SIGKILL)
    until(lambda: rerankd("status", home=home, **place).returncode == 0, timeout_s=20)


def on_terminal(env: dict[str, str]) -> str:
    """Run `rerankd status` with a terminal as standard output, and return what it prints there."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "rerankd", "status"]
    subprocess.run(command, env=env, stdout=slave, stderr=subprocess.DEVNULL, check=True, timeout=60)
    os.close(slave)
    printed = os.read(master, 10_000).decode()
    os.close(master)
    return printed


def test_unknown_values_are_left_out_of_a_block() -> None:
    head, row = ["name", "state", "method", "memory"], ["m", "starting", "-", "-"]
    assert block(head, row, 80) == ["m  starting"]


def test_without_a_server_it_reports_the_address(home: Path) -> None:
    ended = rerankd("status", home=home, RERANKD_PORT="9")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "No server answers at http://127.0.0.1:9" in ended.stderr and "rerankd serve" in ended.stderr


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]"])
def test_another_program_at_the_address_is_reported(home: Path, body: bytes) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Other) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        ended = rerankd("status", home=home, RERANKD_PORT=str(server.server_port))
        thread.join()
    assert ended.returncode == 1
    assert "is not a rerankd" in ended.stderr
