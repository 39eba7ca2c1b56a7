"""rerankd sends no usage data: a cluster that rerankd starts sends none of Ray's usage reports."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

pytest.importorskip("ray", reason="no Ray here: make test-ray")

# Its reports are on, as those of `ray start`. With ray.init, a release of Ray switches them off itself.
OTHERS = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"temp_dir": sys.argv[1], "include_dashboard": False})
print("started", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""
OURS = """
import sys
from rerankd.ray.connection import connected
with connected(None):
    print("started", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def receiving() -> Iterator[tuple[str, threading.Event]]:
    """A server for the reports: its URL, and whether it was asked anything."""
    asked = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.set()
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/", asked
        finally:
            server.shutdown()
            thread.join()


def reports(program: str, folder: str, seconds: float) -> bool:
    """Whether a cluster sends a report within this time."""
    with receiving() as (url, asked):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environ |= {
            "RAY_USAGE_STATS_REPORT_URL": url,
            "RAY_USAGE_STATS_REPORT_INTERVAL_S": "1",
            "RAY_USAGE_STATS_ENABLED": "1",
        }
        process = subprocess.Popen(
            [sys.executable, "-c", program, folder],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        with process:
            assert process.stdout is not None
            said = []
            for line in process.stdout:
                said.append(line)
                if line == "started\n":
                    break
            assert said[-1:] == ["started\n"], "".join(said)
            was_asked = asked.wait(seconds)
            process.communicate("stop\n")
        return was_asked


def test_a_cluster_of_rerankd_sends_no_usage_report() -> None:
    # A socket path has at most 107 bytes, and pytest's folders are long.
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/tmp") as folder:
        assert reports(OTHERS, folder, 60), "this test would not see a report"
        assert not reports(OURS, folder, 10)
