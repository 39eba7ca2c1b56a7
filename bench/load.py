"""Cold start: latency of a request for a model that is not loaded: python bench/load.py [--rounds 5]

Each of the tests' tiny models is requested, then unloaded, in alternation. The latency includes the start of
an engine, the check of its scores, and one request.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from programs import wait_for_port

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
NAMES = ("xlmr-head", "modernbert-head", "qwen3-headed")
PORT = 11442
BODY = {"query": "what is a panda?", "documents": ["a bear of China", "a kind of bread"]}


def main(options: argparse.Namespace) -> None:
    models = ",".join(str(GOLDEN / f"{name}.gguf") for name in NAMES)
    settings = {"MODEL": models, "PRELOAD": "false", "ADMIN_API": "true", "PORT": str(PORT)}
    environment = {**os.environ, **{f"RERANKD_{name}": value for name, value in settings.items()}}
    service = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "serve"], stderr=subprocess.DEVNULL, env=environment
    )
    try:
        wait_for_port(service, PORT)
        with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=120, trust_env=False) as client:
            took: dict[str, list[float]] = {name: [] for name in NAMES}
            for _ in range(options.rounds):
                for name in NAMES:
                    took[name].append(once(client, name))
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait()
    for name, seconds in took.items():
        each = ", ".join(f"{one:.2f}" for one in seconds)
        print(f"{name:16} {statistics.median(seconds):.2f} s   ({each})")


def once(client: httpx.Client, name: str) -> float:
    """Return the latency of a request for an unloaded model, and unload it again."""
    started = time.perf_counter()
    client.post("/v1/rerank", json={**BODY, "model": name}).raise_for_status()
    seconds = time.perf_counter() - started
    client.post(f"/v1/models/{name}/unload").raise_for_status()
    while state(client, name) != "unloaded":
        time.sleep(0.02)
    return seconds


def state(client: httpx.Client, name: str) -> str:
    rows = client.get("/health").json()["models"]
    return str(next(row["engine"]["state"] for row in rows if row["model"] == name))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    main(parser.parse_args())
