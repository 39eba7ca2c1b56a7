"""Minutes of mixed load, during which the engine is killed twice (a part of bench/gpu.py).

Requests of 1 to 100 documents of 5 to 400 words go to three models at once. No request may fail: the service
repeats what was lost with an engine. Scores of the same texts are compared before and after, without a cache,
and memory at a quarter of the time and at the end.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gpu_bench import Bench
from gpu_load import Task
from gpu_meters import Gpu, rss_mib
from gpu_models import SHAPES
from gpu_service import Failed, Service, apply, serving

from rerankd.benchmark import load

_MODELS = ("bert-large", "Qwen3-Reranker-0.6B", "ettin-reranker-150m-v1")
_KILLS_AT, _FIRST_LOOK_AT = (0.35, 0.6), 0.25
# Passes of other sizes round differently: a change below this share of the scores' spread is not an error.
_MOST_CHANGE = 0.15


def run(bench: Bench, until: float) -> None:
    with bench.guarded("mixed", "", until):
        folders = [bench.make(bench.sized(SHAPES[name])) for name in _MODELS]
        flags = ("--engine", bench.options.engine)
        with serving(folders, bench.home, 150, *flags, RERANKD_CACHE_ENTRIES="0") as service:
            bench.add("mixed", _mixed(bench, service))


@dataclass
class Events:
    """What happens during the load: kills, and looks at memory."""

    service: Service
    gpu: Gpu
    seconds: float
    killed: list[int] = field(default_factory=list)
    looks: list[dict[str, float]] = field(default_factory=list)

    def __call__(self) -> None:
        started = time.monotonic()
        steps = [(_FIRST_LOOK_AT, self.look), *((at, self.kill) for at in _KILLS_AT), (0.95, self.look)]
        for at, step in steps:
            time.sleep(max(0.0, started + at * self.seconds - time.monotonic()))
            step()

    def kill(self) -> None:
        """Kill an engine, each time another one."""
        workers = self.service.workers()
        if not workers:
            raise Failed("no engine is running")
        pid = workers[len(self.killed) % len(workers)]
        os.kill(pid, signal.SIGKILL)
        self.killed.append(pid)

    def look(self) -> None:
        self.looks.append(
            {
                "service_mib": rss_mib([self.service.pid]),
                "worker_mib": rss_mib(self.service.workers()),
                "gpu_mib": self.gpu.memory_mib() or 0.0,
            }
        )


def _mixed(bench: Bench, service: Service) -> dict[str, Any]:
    seconds = max(6.0, 60 * bench.options.minutes)
    before = _scores(service, bench.is_tiny)
    events = Events(service, bench.gpu, seconds)
    task = Task(
        0,
        connections=bench.options.clients,
        seconds=seconds,
        documents=(1, 8 if bench.is_tiny else 100),
        words=(5, 400),
        models=_MODELS,
        bodies=600,
        seed=77,
    )
    loaded = apply(service, task, bench.processes, bench.gpu, during=events)
    after = _scores(service, bench.is_tiny)
    change = max(float(np.abs(after[name] - before[name]).max() / np.ptp(before[name])) for name in before)
    first, last = events.looks
    found = loaded.found
    row: dict[str, Any] = {
        "minutes": round(seconds / 60, 2),
        "requests": len(found.latencies_ms) + len(found.failed),
        "pairs_per_s": round(loaded.pairs_per_s, 1),
        "p99_ms": round(loaded.percentile(0.99), 1),
        "slowest_ms": round(loaded.percentile(1.0), 1),
        "kills": len(events.killed),
        "restarted": not set(events.killed) & set(service.workers()),
        "failed": len(found.failed),
        "largest_change": round(change, 5),
    }
    row |= {name: f"{first[name]:.0f} → {last[name]:.0f}" for name in first}
    if found.failed:
        row["first_failure"] = found.failed[0]
    if change > _MOST_CHANGE:
        row["error"] = "the scores after the load differ from those before it"
    return row


def _scores(service: Service, is_few: bool) -> Mapping[str, np.ndarray[Any, Any]]:
    """The raw scores of the same texts by each model."""
    pick = random.Random(9)
    query = load.text(pick, load.QUERY_WORDS)
    documents = [load.text(pick, 60) for _ in range(6 if is_few else 40)]
    found = {}
    for name in _MODELS:
        fields = {"model": name, "query": query, "documents": documents, "raw_scores": True}
        results = sorted(service.post(fields)["results"], key=lambda row: row["index"])
        found[name] = np.array([row["relevance_score"] for row in results])
    return found
