"""Throughput and latency of each shape through the service (a part of bench/gpu.py)."""

from __future__ import annotations

import contextlib
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu_bench import Bench
from gpu_load import Task
from gpu_models import SHAPES, Shape
from gpu_service import Failed, Loaded, Service, Start, apply, ready, starting, wait
from gpu_texts import Reader

from rerankd.benchmark import flops, load

DOCUMENTS, FEW, WORDS = 100, 20, 100
# The models whose latency is measured, and the one that gets an open loop.
_LATENCY = ("Qwen3-Reranker-0.6B", "Qwen3-Reranker-8B")
_OPEN = "Qwen3-Reranker-0.6B"
# The open loop: tokens of an item (its whole prompt), items of a request, and the rates to try as shares of
# the closed loop's, corrected for the length.
ITEM_TOKENS, ITEMS, P99_MS = 300, 10, 500.0
_SHARES = (0.5, 0.65, 0.75, 0.85, 0.95, 1.05, 1.15)
_READY_S, _COMPILE_S = 120.0, 60.0
_LEAST_S = 20.0  # what is kept for each of the models that are still to be measured


def run(bench: Bench, until: float) -> None:
    """All services start at once, and are measured one after the other while the others are idle."""
    starts: dict[str, Start] = {}
    with contextlib.ExitStack() as stack:
        for name in bench.options.shapes:
            with bench.guarded("http", name, until):
                folder = bench.make(bench.sized(SHAPES[name]))
                flags = ("--engine", bench.options.engine)
                starts[name] = stack.enter_context(starting([folder], bench.home, *flags))
        wait(list(starts.values()), _READY_S)
        for at, (name, start) in enumerate(starts.items()):
            least = time.monotonic() + _LEAST_S
            with bench.guarded("http", name, max(until - _LEAST_S * (len(starts) - 1 - at), least)):
                _measure(bench, SHAPES[name], start.models[0], ready(start))
        for start in starts.values():
            start.process.terminate()  # all at once


def _measure(bench: Bench, shape: Shape, folder: Path, service: Service) -> None:
    engine = service.get("/v1/status")["models"][0]["engine"]
    row: dict[str, Any] = {
        "model": shape.name,
        "engine": engine["program"],
        "ready_s": round(service.ready_s, 1),
    }
    row["compiled"] = "; ".join(service.compiled(_COMPILE_S))
    sizes = Sizes(Reader.of(folder, bench.home))
    documents = 8 if bench.is_tiny else DOCUMENTS
    clients = bench.options.clients
    task = Task(0, clients, documents=(documents, documents), words=(WORDS, WORDS), bodies=4 * clients)
    loaded = _warm_and_apply(bench, service, task)
    row |= _figures(loaded) | sizes.figures(documents, loaded.pairs_per_s, bench.peak_flops)
    bench.add("http", row)
    if shape.name in _LATENCY:
        few = replace(task, connections=1, documents=(FEW, FEW), bodies=100, seed=5)
        loaded = apply(service, replace(few, seconds=bench.options.seconds / 3), 1, bench.gpu)
        bench.add("http", {"model": shape.name, "load": f"1 client, {FEW} documents"} | _figures(loaded))
    if shape.name == _OPEN:
        _open_loop(bench, service, sizes, task, row["pairs_per_s"])


def _warm_and_apply(bench: Bench, service: Service, task: Task) -> Loaded:
    """The load for the set time, after a fourth of that time without being counted."""
    seconds = bench.options.seconds
    first = apply(service, replace(task, seconds=seconds / 4), bench.processes, bench.gpu)
    if not first.found.pairs:
        raise Failed(first.found.failed[0])
    requests = int(1.3 * seconds * len(first.found.latencies_ms) / first.found.elapsed_s)
    bodies = min(max(requests, 16), 1000)
    return apply(service, replace(task, seconds=seconds, bodies=bodies, seed=1), bench.processes, bench.gpu)


def _open_loop(bench: Bench, service: Service, sizes: Sizes, task: Task, pairs_per_s: float) -> None:
    """Send items at rising rates until the 99th percentile is too long."""
    words = sizes.words_for(ITEM_TOKENS)
    closed = pairs_per_s * sizes.tokens(WORDS)[0] / sizes.tokens(words)[0]
    for share in _SHARES:
        rate = closed * share / ITEMS
        items = replace(
            task,
            rate=rate,
            seconds=bench.options.seconds / 2,
            documents=(ITEMS, ITEMS),
            words=(words, words),
            bodies=min(600, max(16, int(rate * bench.options.seconds / 2))),
            seed=10 + int(100 * share),
        )
        loaded = apply(service, items, bench.processes, bench.gpu)
        figures = _figures(loaded) | {"items_per_s": round(rate * ITEMS, 1)}
        title = f"open loop, {ITEMS} items of {ITEM_TOKENS} tokens ({words} words)"
        bench.add("http", {"model": _OPEN, "load": title} | figures)
        if figures["p99_ms"] > P99_MS or figures.get("failed"):
            return


def _figures(loaded: Loaded) -> dict[str, Any]:
    found = loaded.found
    thousand = max(found.pairs, 1) / 1000
    row: dict[str, Any] = {
        "pairs_per_s": round(loaded.pairs_per_s, 1),
        "p50_ms": round(loaded.percentile(0.5), 1),
        "p99_ms": round(loaded.percentile(0.99), 1),
        "service_cpu_s_per_1000": round(loaded.service_cpu_s / thousand, 3),
        "worker_cpu_s_per_1000": round(loaded.worker_cpu_s / thousand, 3),
        "service_cores": round(loaded.service_cpu_s / found.elapsed_s, 2),
        "worker_cores": round(loaded.worker_cpu_s / found.elapsed_s, 2),
        "load_cores": round(loaded.load_cpu_s / found.elapsed_s, 2),
    }
    if loaded.gpu_busy is not None:
        row |= {"gpu_busy": round(loaded.gpu_busy, 3), "gpu_watts": round(loaded.gpu_watts or 0)}
    if found.failed:
        row |= {"failed": len(found.failed), "first_failure": found.failed[0]}
    return row


@dataclass(frozen=True)
class Sizes:
    """How many tokens a model computes for a pair: those of its own, and those of the prompt's start, which
    are computed once a request."""

    reader: Reader

    def tokens(self, words: int) -> tuple[float, float]:
        """The own and the shared tokens of documents of this many words, on average."""
        pick = random.Random(words)
        query = load.text(pick, load.QUERY_WORDS + 1)
        counts = [len(self.reader.read(query, load.text(pick, words))["input_ids"]) for _ in range(40)]
        shared = self.reader.shared(query)
        return sum(counts) / len(counts) - shared, shared

    def words_for(self, tokens: int) -> int:
        """The words of a document whose whole prompt has about this many tokens."""
        return next(words for words in range(20, 400, 5) if sum(self.tokens(words)) >= tokens)

    def figures(self, documents: int, pairs_per_s: float, peak_flops: float) -> dict[str, Any]:
        """The tokens that are computed for a pair, and the share of the peak that this rate is."""
        own, shared = self.tokens(WORDS)
        computed = own + shared / documents
        share = flops.share(
            self.reader.metadata,
            causal=self.reader.is_causal,
            pairs_per_s=pairs_per_s,
            tokens_per_pair=computed,
            peak_flops=peak_flops,
        )
        return {"tokens_per_pair": round(computed, 1), "of_peak": round(share or 0.0, 3)}
