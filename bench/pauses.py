"""Garbage collection pauses and tail latency under steady load: python bench/pauses.py [--rate 50] [--seconds
60]

Prints two results. The first is the CPU time of one full garbage collection in a process with the service's
objects, before and after gc.freeze; it is the longest time for which the collector can delay a response. The
second is the latency of small requests sent to a running service at a fixed rate (open loop): p50, p99, p99.9
and the maximum. After the first request the documents' scores are cached, so that the engine has no
influence. Other load on the machine adds pauses: report what else was running.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
from programs import wait_for_port

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
PORT = 11443
BODY = {"query": "what is a panda?", "documents": ["a bear of China", "a kind of bread"]}


def main(options: argparse.Namespace) -> None:
    collections()
    settings = {"MODEL": str(GOLDEN / "xlmr-head.gguf"), "PORT": str(PORT)}
    environment = {**os.environ, **{f"RERANKD_{name}": value for name, value in settings.items()}}
    service = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "serve"], stderr=subprocess.DEVNULL, env=environment
    )
    try:
        wait_for_port(service, PORT)
        took = sorted(asyncio.run(steady(options.rate, options.seconds)))
    finally:
        service.terminate()
        service.wait()
    marks = {name: took[min(int(len(took) * share), len(took) - 1)] for name, share in SHARES.items()}
    print(f"{len(took)} requests at {options.rate}/s, in ms:")
    print("  ".join(f"{name} {seconds * 1000:.1f}" for name, seconds in marks.items()))


SHARES = {"p50": 0.5, "p99": 0.99, "p99.9": 0.999, "longest": 1.0}


def collections() -> None:
    """Print the CPU time of a full collection before and after the service's objects are frozen."""
    from rerankd.api.app import create_app
    from rerankd.config import Settings

    app = create_app(Settings())
    app.openapi()
    gc.collect()
    before = collection_ms()
    gc.freeze()
    print(f"a full garbage collection, CPU ms: {before:.1f}; frozen {collection_ms():.1f}")
    gc.unfreeze()


def collection_ms() -> float:
    times = []
    for _ in range(7):
        started = time.process_time()
        gc.collect()
        times.append(time.process_time() - started)
    return sorted(times)[3] * 1000


async def steady(rate: float, seconds: float) -> list[float]:
    """Return the latencies, measured from the time at which each request was due."""
    took: list[float] = []
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{PORT}", timeout=60, trust_env=False, limits=limits
    ) as client:

        async def once(due: float) -> None:
            (await client.post("/v1/rerank", json=BODY)).raise_for_status()
            took.append(time.perf_counter() - due)

        await once(time.perf_counter())
        took.clear()
        begin = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(int(rate * seconds)):
                due = begin + number / rate
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                group.create_task(once(due))
    return took


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rate", type=float, default=50, help="requests per second")
    parser.add_argument("--seconds", type=float, default=60)
    main(parser.parse_args())
