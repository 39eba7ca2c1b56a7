"""Startup time, memory and latency that the service adds to its engine: python bench/service.py [--rounds 15]
[--documents 32] [--words 100] [--engine openvino]

Measures with the built-in model, in one run: the time from the command to the first response, the RSS of the
service without its engine, and the latency of requests over HTTP and of the same calls to the engine itself,
in alternation.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
from programs import text, wait_for_port

WORDS = [
    "panda",
    "bear",
    "river",
    "mountain",
    "bread",
    "ticket",
    "weather",
    "library",
    "guitar",
    "pizza",
    "house",
    "small",
    "green",
    "water",
    "open",
]
PORT = 11441


def start(engine: str) -> tuple[subprocess.Popen[bytes], float]:
    """Start the service; return it and the seconds from the command to its first response."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "rerankd", "serve", "--port", str(PORT)]
    # Without the cache, every request reaches the engine.
    environment = {**os.environ, "RERANKD_CACHE_ENTRIES": "0", "RERANKD_ENGINE": engine}
    service = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=environment)
    body = {"query": "what is a panda?", "documents": ["a bear of China", "a kind of bread"]}
    wait_for_port(service, PORT)
    httpx.post(f"http://127.0.0.1:{PORT}/v1/rerank", json=body, trust_env=False).raise_for_status()
    return service, time.perf_counter() - started


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise ValueError(pid)


def engine_socket(service: int) -> str:
    (engine,) = Path(f"/proc/{service}/task/{service}/children").read_text().split()
    words = Path(f"/proc/{engine}/cmdline").read_text().split("\0")
    return words[words.index("--host" if "--host" in words else "--socket") + 1]


def engine_call(kind: str, query: str, texts: list[str]) -> tuple[str, dict[str, Any]]:
    """Return the path and body of the service's request to its engine."""
    prefixed = [f"passage: {one}" for one in texts]
    if kind == "openvino":
        return "/score", {"query": f"query: {query}", "texts": prefixed}
    return "/v1/embeddings", {"input": [f"query: {query}", *prefixed], "encoding_format": "base64"}


def timed(client: httpx.Client, path: str, body: dict[str, Any]) -> float:
    """Return the seconds from the serialized request to the parsed response."""
    data = json.dumps(body).encode()
    started = time.perf_counter()
    client.post(path, content=data, headers={"content-type": "application/json"}).raise_for_status().json()
    return time.perf_counter() - started


def main(options: argparse.Namespace) -> None:
    starts = []
    for _ in range(3):
        service, first_s = start(options.engine)
        starts.append(first_s)
        service.send_signal(signal.SIGTERM)
        service.wait()
    service, first_s = start(options.engine)
    starts.append(first_s)
    each = ", ".join(f"{seconds:.2f}" for seconds in starts)
    print(f"command to first response        {statistics.median(starts):.2f} s   ({each})")
    uds = httpx.HTTPTransport(uds=engine_socket(service.pid))
    engine = httpx.Client(transport=uds, base_url="http://engine", timeout=120)
    http = httpx.Client(base_url=f"http://127.0.0.1:{PORT}", timeout=120, trust_env=False)
    texts = [text(WORDS, options.words, f"document {at}") for at in range(options.documents)]
    took: dict[str, list[float]] = {"engine": [], "service": []}
    for at in range(options.rounds + 1):
        query = text(WORDS, 8, f"query {at}")
        engine_s = timed(engine, *engine_call(options.engine, query, texts))
        service_s = timed(http, "/v1/rerank", {"query": query, "documents": texts})
        if at:
            took["engine"].append(engine_s)
            took["service"].append(service_s)
    medians = {name: statistics.median(values) * 1000 for name, values in took.items()}
    added = [1000 * (b - a) for a, b in zip(took["engine"], took["service"], strict=True)]
    print(f"engine alone                     {medians['engine']:.1f} ms")
    print(f"through the service              {medians['service']:.1f} ms")
    print(f"added, median of {options.rounds} pairs        {statistics.median(added):.1f} ms")
    print(f"memory of the service            {rss_mib(service.pid):.0f} MiB")
    service.send_signal(signal.SIGTERM)
    service.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--engine", choices=["openvino", "llama"], default="openvino")
    main(parser.parse_args())
