"""Service times of one server, which bench/scale.py simulates with, as JSON:

    python bench/service_times.py > bench/service_times.json

Starts rerankd with the built-in model (or --model) and sends it, one after another, requests of three kinds
in turns: a new query with new documents, the same query with other new documents, and the first one again,
which the score cache answers. Then, with --repeats requests that the cache answers, it measures the CPU time
of the service's process, which is what a request costs a server besides its engine. All times are in ms.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "faults"), str(Path(__file__).parents[1] / "tests")]

from hotpath import cpu_s
from served import Service, service

from rerankd import machine
from rerankd.benchmark.load import text


def measured(it: Service, options: argparse.Namespace) -> dict[str, Any]:
    pick = random.Random(options.seed)
    fewest, most = map(int, options.words.split("-"))

    def texts() -> list[str]:
        return [text(pick, pick.randint(fewest, most)) for _ in range(options.documents)]

    def took_ms(query: str, documents: list[str]) -> float:
        started = time.perf_counter()
        client.post("/v1/rerank", json={"query": query, "documents": documents}).raise_for_status()
        return round((time.perf_counter() - started) * 1000, 3)

    times: dict[str, list[float]] = {"new_ms": [], "same_query_ms": [], "cached_ms": []}
    with httpx.Client(base_url=it.url, timeout=600, trust_env=False) as client:
        took_ms("warm up", texts())
        for _ in range(options.rounds):
            query, documents = text(pick, 8), texts()
            times["new_ms"].append(took_ms(query, documents))
            times["same_query_ms"].append(took_ms(query, texts()))
            times["cached_ms"].append(took_ms(query, documents))
        before = cpu_s(it.process.pid)
        for _ in range(options.repeats):
            took_ms(query, documents)
        cpu_ms = (cpu_s(it.process.pid) - before) * 1000 / options.repeats
    return {name: sorted(each) for name, each in times.items()} | {"cached_cpu_ms": round(cpu_ms, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="builtin:e5")
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--words", default="20-180", help="words per document, from-to")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="rs") as folder,
        service(Path(folder), real=True, model=options.model) as it,
    ):
        times = measured(it, options)
    about = {"command": "python " + " ".join(sys.argv), "cpu": machine.cpu_name()}
    print(json.dumps(about | vars(options) | times, indent=1))


if __name__ == "__main__":
    main()
