"""A simulation, not a measurement: response times and cache hits of 1 to 1,000 replicas behind ingresses.

    python bench/scale.py routers       routers compared, by load
    python bench/scale.py ingress       one ingress in front of more and more replicas
    python bench/scale.py bounds        values of affinity.BOUND and ALLOWED_LOAD

The times were measured: bench/service_times.json, by the command in it. A request takes its turn at an
ingress (FIFO, its CPU time), goes to a replica, takes its turn at that service's process, and, unless the
score cache holds its answer, at the engine (FIFO, a measured time drawn at random). Routers: `random`;
`least`, the less loaded of two random replicas (power of two choices, as Ray Serve routes); `affinity`,
affinity.choose with the loads that the ingress itself knows.

The stream: Poisson arrivals; queries by Zipf's law, as search engines see them (Xie & O'Hallaron 2002,
"Locality in search engine queries"), with an assumed exponent; a share of requests has other documents than
the query had before. Load 1 is as many requests as the replicas could answer if no answer were cached. Before
the simulated time each replica's cache has seen `--warm` requests. Queues are unlimited; rerankd's are not.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import random
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from rerankd import affinity

TIMES = json.loads(Path(__file__).with_name("service_times.json").read_text())
CACHED_REQUESTS = 100_000 // TIMES["documents"]  # the default of cache_entries
INGRESS_S = TIMES.get("front_cpu_ms", TIMES["cached_cpu_ms"]) / 1000
PROCESS_S = TIMES["cached_cpu_ms"] / 1000
CAPACITY = 1000 * len(TIMES["new_ms"]) / sum(TIMES["new_ms"])  # requests/s of a replica without its caches


@dataclass(slots=True)
class Replica:
    process_free: float = 0.0
    engine_free: float = 0.0
    load: int = 0
    answers: OrderedDict[int, float] = field(
        default_factory=OrderedDict
    )  # query -> when its scores are known

    def remember(self, query: int, known: float) -> None:
        self.answers[query] = known
        self.answers.move_to_end(query)
        if len(self.answers) > CACHED_REQUESTS:
            self.answers.popitem(last=False)

    def answer(self, now: float, query: int, changed: bool, pick: random.Random) -> tuple[float, bool]:
        """When a request that arrives now is answered, and whether by the cache."""
        self.process_free = max(now, self.process_free) + PROCESS_S
        known = self.answers.get(query)
        if hit := known is not None and not changed:
            done = max(self.process_free, known) + pick.choice(TIMES["cached_ms"]) / 1000 - PROCESS_S
        else:
            kind = "new_ms" if known is None else "same_query_ms"
            done = max(self.process_free, self.engine_free) + pick.choice(TIMES[kind]) / 1000
            self.engine_free = known = done
        self.remember(query, known)
        return done, hit


@dataclass(slots=True)
class View:
    """A replica as one ingress sees it: `load` are that ingress's own requests."""

    number: int
    seed: int
    weight: float = 1.0
    load: int = 0


@cache
def key(query: int) -> int:
    return affinity.key("model", f"query {query}", None)


class Fleet:
    """Replicas and ingresses, and the stream of queries."""

    def __init__(self, replicas: int, options: argparse.Namespace) -> None:
        self.size, self.options = replicas, options
        weights = 1 / np.arange(1, options.queries + 1) ** options.zipf
        self._cumulative = np.cumsum(weights) / weights.sum()
        self._first: dict[int, int] = {}
        self.seeds = [affinity.seed(f"replica {number}") for number in range(replicas)]

    def queries(self, count: int, seed: int) -> Iterator[int]:
        drawn = np.random.default_rng(seed).random(count)
        return iter(np.searchsorted(self._cumulative, drawn).tolist())

    def warmed(self, router: str, pick: random.Random) -> list[Replica]:
        """The replicas after requests so slow that no load counts."""
        replicas = [Replica() for _ in self.seeds]
        idle = [View(number, seed) for number, seed in enumerate(self.seeds)]
        for query in self.queries(self.options.warm * self.size, self.options.seed):
            if router != "affinity":
                at = pick.randrange(self.size)
            elif (at := self._first.get(query, -1)) < 0:
                chosen = affinity.choose(key(query), idle)
                assert chosen is not None
                at = self._first[query] = chosen.number
            replicas[at].remember(query, 0.0)
        return replicas

    def run(self, router: str, load: float, ingresses: int, **bounds: float) -> dict[str, float]:
        """Simulate one router at one load: p50, p95, share of cache hits, and how busy the ingresses are."""
        pick = random.Random(self.options.seed)
        replicas = self.warmed(router, pick)
        views = [[View(number, seed) for number, seed in enumerate(self.seeds)] for _ in range(ingresses)]
        count = max(self.options.requests, 60 * self.size)
        rate = load * CAPACITY * self.size
        free, decisions, now = [0.0] * ingresses, [], 0.0
        for query in self.queries(count, self.options.seed + 1):
            now += pick.expovariate(rate)
            ingress = pick.randrange(ingresses)
            free[ingress] = max(now, free[ingress]) + INGRESS_S
            decisions.append((free[ingress], now, ingress, query))
        under_way: list[tuple[float, int, int]] = []
        times, hits = [], 0
        for decided, arrived, ingress, query in sorted(decisions):
            while under_way and under_way[0][0] <= decided:
                _, by, at = heapq.heappop(under_way)
                replicas[at].load -= 1
                views[by][at].load -= 1
            if router == "affinity":
                chosen = affinity.choose(key(query), views[ingress], **bounds)
                assert chosen is not None
                at = chosen.number
            else:
                tried = [pick.randrange(self.size) for _ in range(1 if router == "random" else 2)]
                at = min(tried, key=lambda number: replicas[number].load)
            changed = pick.random() < self.options.changed
            done, hit = replicas[at].answer(decided, query, changed, pick)
            replicas[at].load += 1
            views[ingress][at].load += 1
            heapq.heappush(under_way, (done, ingress, at))
            times.append(done - arrived)
            hits += hit
        p50, p95 = np.percentile(times[count // 3 :], (50, 95)) * 1000
        busy = count * INGRESS_S / ingresses / now
        return {"p50_ms": round(p50), "p95_ms": round(p95), "hits": hits / count, "ingress_busy": busy}


def cases(table: str, replicas: int, load: float) -> Iterator[dict[str, Any]]:
    """The arguments of the runs of one table."""
    ingresses = math.ceil(2 * load * CAPACITY * replicas * INGRESS_S)  # each is busy half of the time
    if table == "routers":
        yield from ({"router": router, "ingresses": ingresses} for router in ("random", "least", "affinity"))
    elif table == "ingress":
        yield from ({"router": "affinity", "ingresses": count} for count in sorted({1, ingresses}))
    else:
        for bound, allowed in itertools.product((1.0, 1.25, 1.5, 2.0, 4.0, 1e9), (1.0, 2.0, 4.0)):
            yield {"router": "affinity", "ingresses": ingresses, "bound": bound, "allowed_load": allowed}


def rows(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The arguments and the results of each run."""
    for replicas in options.replicas:
        fleet = Fleet(replicas, options)
        for load in options.loads:
            for case in cases(options.table, replicas, load):
                yield {"replicas": replicas, "load": load} | case | fleet.run(load=load, **case)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", nargs="?", choices=["routers", "ingress", "bounds"], default="routers")
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.8, 1.0, 1.2])
    parser.add_argument("--queries", type=int, default=1_000_000, help="different queries that users may ask")
    parser.add_argument("--zipf", type=float, default=0.9)
    parser.add_argument("--changed", type=float, default=0.2, help="share of requests with other documents")
    parser.add_argument("--warm", type=int, default=500, help="requests per replica before the simulation")
    parser.add_argument(
        "--requests", type=int, default=20_000, help="at least; 60 per replica if that is more"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="a line of JSON per run")
    options = parser.parse_args()
    for number, row in enumerate(rows(options)):
        if not number and not options.json:
            print("  ".join(f"{name:>12}" for name in row))
        cells = (f"{one:12.3g}" if isinstance(one, float) else f"{one:>12}" for one in row.values())
        print(json.dumps(row) if options.json else "  ".join(cells), flush=True)


if __name__ == "__main__":
    main()
