"""Time from `rerankd serve` to its first answer, and the memory of the service without its engine, with the
built-in model: python bench/service.py [--rounds 4] [--engine openvino]. hotpath.py measures what the service
adds to a request."""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx
from programs import wait_for_port

PORT = 11441
BODY = {"query": "what is a panda?", "documents": ["a bear of China", "a kind of bread"]}


def measure(engine: str) -> tuple[float, float]:
    """Start the service once: seconds from the command to the first response, and its RSS in MiB."""
    started = time.perf_counter()
    service = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "serve", "--port", str(PORT)],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "RERANKD_ENGINE": engine},
    )
    try:
        wait_for_port(service, PORT)
        url = f"http://127.0.0.1:{PORT}/v1/rerank"
        httpx.post(url, json=BODY, trust_env=False, timeout=120).raise_for_status()
        return time.perf_counter() - started, rss_mib(service.pid)
    finally:
        service.terminate()
        service.wait()


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise ValueError(pid)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--engine", choices=["openvino", "llama"], default="openvino")
    options = parser.parse_args()
    starts, memory = zip(*(measure(options.engine) for _ in range(options.rounds)), strict=True)
    each = ", ".join(f"{seconds:.2f}" for seconds in starts)
    print(f"command to first response   {statistics.median(starts):.2f} s   ({each})")
    print(f"memory of the service       {statistics.median(memory):.0f} MiB")


if __name__ == "__main__":
    main()
