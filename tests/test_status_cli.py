"""`rerankd status` against a server, and without one."""

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

from support import GOLDEN, children, environment, post, rerankd, until
from test_cli import Serve

XLMR = str(GOLDEN / "xlmr-head.gguf")


def test_it_tells_what_the_server_does(serve: Serve, home: Path) -> None:
    program = serve(XLMR, "--alias", "tiny", RERANKD_API_KEY="secret")
    assert "Open that address in a browser" in "".join(program.said)
    port = program.url.rpartition(":")[2]
    post(f"{program.url}/v1/rerank", {"query": "q", "documents": ["a"]}, authorization="Bearer secret")
    place = {"RERANKD_PORT": port, "RERANKD_API_KEY": "secret"}
    told = rerankd("status", home=home, **place)
    assert told.returncode == 0, told.stderr
    assert told.stdout.split("\t")[:4] == ["tiny", "ready", "cross_encoder", "256"]
    assert "1 requests in the last 10 minutes" in told.stderr
    assert "tiny: it agrees with llama.cpp b" in told.stderr  # the self-test
    as_json = rerankd("status", "--json", home=home, **place)
    (model,) = json.loads(as_json.stdout)["models"]
    assert (model["id"], model["engine"]["starts"]) == ("tiny", 1)
    refused = rerankd("status", home=home, RERANKD_PORT=port)
    assert (refused.returncode, "The API key is missing or wrong" in refused.stderr) == (1, True)
    # A person sees a table.
    master, slave = pty.openpty()
    subprocess.run(
        [sys.executable, "-m", "rerankd", "status"],
        env=environment(home, **place, COLUMNS="200"),
        stdout=slave,
        stderr=subprocess.DEVNULL,
        check=True,
        timeout=60,
    )
    os.close(slave)
    assert "max_length" in os.read(master, 10_000).decode()
    os.close(master)
    (engine,) = children(program.process.pid)
    os.kill(engine, signal.SIGKILL)
    until(lambda: rerankd("status", home=home, **place).returncode == 0, timeout_s=20)


def test_without_a_server_it_says_so(home: Path) -> None:
    told = rerankd("status", home=home, RERANKD_PORT="9")
    assert (told.returncode, told.stdout) == (1, "")
    assert "No server answers at http://127.0.0.1:9" in told.stderr and "rerankd serve" in told.stderr


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]"])
def test_something_else_at_the_address_is_named(home: Path, body: bytes) -> None:
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
        told = rerankd("status", home=home, RERANKD_PORT=str(server.server_port))
        thread.join()
    assert told.returncode == 1
    assert "is not a rerankd" in told.stderr
