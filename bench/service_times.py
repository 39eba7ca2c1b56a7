"""Service times of one server, which bench/scale.py simulates with, as JSON:

    python bench/service_times.py > bench/service_times.json

Starts rerankd with the built-in model (or --model) and sends it, one after another, requests of three kinds
in turns: a new query with new documents, the same query with other new documents, and the first one again,
which the score cache answers. Then --repeats requests that the cache answers go to this server and, in turns,
through a second one in front of it ([upstreams]): the CPU time of both services' processes, which is what a
request costs besides the engine, and the median response times. `choice_us`: a choice among 4 and 1,000.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "faults"), str(Path(__file__).parents[1] / "tests")]

from served import Service, service

from rerankd import affinity, machine
from rerankd.benchmark.load import text


def took_ms(client: httpx.Client, query: str, documents: list[str]) -> float:
    started = time.perf_counter()
    client.post("/v1/rerank", json={"query": query, "documents": documents}).raise_for_status()
    return round((time.perf_counter() - started) * 1000, 3)


def measured(it: Service, front: Service, options: argparse.Namespace) -> dict[str, Any]:
    pick = random.Random(options.seed)
    fewest, most = map(int, options.words.split("-"))

    def texts() -> list[str]:
        return [text(pick, pick.randint(fewest, most)) for _ in range(options.documents)]

    times: dict[str, list[float]] = {"new_ms": [], "same_query_ms": [], "cached_ms": []}
    with it.client() as client:
        took_ms(client, "warm up", texts())
        for _ in range(options.rounds):
            query, documents = text(pick, 8), texts()
            times["new_ms"].append(took_ms(client, query, documents))
            times["same_query_ms"].append(took_ms(client, query, texts()))
            times["cached_ms"].append(took_ms(client, query, documents))
    return {name: sorted(each) for name, each in times.items()} | hop(it, front, query, documents, options)


def hop(
    it: Service, front: Service, query: str, documents: list[str], options: argparse.Namespace
) -> dict[str, float]:
    """What one request that the cache answers costs, at the server and in front of it: CPU time in the
    cheapest of 20 batches, which other programs have disturbed least, and the median response time."""
    sides = {"cached": it, "front": front}
    took: dict[str, list[float]] = {name: [] for name in sides}
    spent: dict[str, list[float]] = {name: [] for name in sides}
    size = options.repeats // 20
    with it.client() as direct, front.client() as through:
        for _ in range(20):
            for name, client in (("cached", direct), ("front", through)):
                before = cpu_ms(sides[name].process.pid)
                took[name] += [took_ms(client, query, documents) for _ in range(size)]
                spent[name].append((cpu_ms(sides[name].process.pid) - before) / size)
    found = {f"{name}_cpu_ms": round(min(each), 3) for name, each in spent.items()}
    return found | {f"{name}_p50_ms": round(statistics.median(each), 3) for name, each in took.items()}


def cpu_ms(pid: int) -> float:
    """The CPU time of a process, all threads (Linux)."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e6


@dataclass(frozen=True, slots=True)
class Candidate:
    seed: int
    weight: float = 1.0
    load: float = 0.0


def choice_us(servers: int) -> float:
    """The time of a choice among this many servers."""
    fleet = [Candidate(affinity.seed(f"server {number}")) for number in range(servers)]
    calls = 20_000 // servers
    times = timeit.repeat(lambda: affinity.choose(random.getrandbits(64), fleet), number=calls)
    return round(min(times) / calls * 1e6, 1)


@contextlib.contextmanager
def service_in_front(folder: Path, it: Service) -> Iterator[Service]:
    folder.mkdir()
    (folder / "rerankd.toml").write_text(f'[upstreams.one]\nurl = "{it.url}"\n')
    with service(folder, real=True, config=folder / "rerankd.toml", model="") as front:
        yield front


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
        service_in_front(Path(folder) / "front", it) as front,
    ):
        times = measured(it, front, options)
    about = {"command": "python " + " ".join(sys.argv), "cpu": machine.cpu_name()}
    times["choice_us"] = {servers: choice_us(servers) for servers in (4, 1000)}
    print(json.dumps(about | vars(options) | times, indent=1))


if __name__ == "__main__":
    main()
