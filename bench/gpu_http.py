"""Throughput and latency of each shape through the service (a part of bench/gpu.py)."""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpu_bench import Bench
from gpu_load import Task
from gpu_models import Shape
from gpu_service import Failed, Loaded, Service, apply, serving
from tokenizers import Tokenizer

from rerankd.benchmark import flops, load
from rerankd.config import Settings
from rerankd.scoring import prompt
from rerankd.serving.prepare_model import Model, prepare

DOCUMENTS, FEW = 100, 20
# The models whose latency is measured, and the one that gets an open loop.
_LATENCY = ("Qwen3-Reranker-0.6B", "Qwen3-Reranker-8B")
_OPEN = "Qwen3-Reranker-0.6B"
# The open loop: tokens of an item (its whole prompt), items of a request, and the rates to try as shares of
# the closed loop's, corrected for the length.
ITEM_TOKENS, ITEMS, P99_MS = 300, 10, 500.0
_SHARES = (0.5, 0.65, 0.8, 0.9, 1.0, 1.1)
_LAST_S = 45.0  # what a model gets at least before the time of the part is over


def run(bench: Bench, until: float) -> None:
    names = bench.options.shapes
    for at, name in enumerate(names):
        later = len(names) - 1 - at
        with bench.guarded("http", name, max(until - 30 * later, time.monotonic() + _LAST_S)):
            if time.monotonic() > until:
                raise Failed("the time of this part is over")
            started = time.perf_counter()
            shape = bench.shape(name)
            folder = bench.make(shape)
            made_s = time.perf_counter() - started
            with serving([folder], bench.home, 150, "--engine", bench.options.engine) as service:
                _measure(bench, shape, folder, service, made_s)
        if not bench.options.models:
            shutil.rmtree(bench.models / name, ignore_errors=True)


def _measure(bench: Bench, shape: Shape, folder: Path, service: Service, made_s: float) -> None:
    engine = service.get("/v1/status")["models"][0]["engine"]
    row: dict[str, Any] = {
        "model": shape.name,
        "engine": engine["program"],
        "made_s": round(made_s, 1),
        "ready_s": round(service.ready_s, 1),
    }
    sizes = Sizes.of(shape, folder, bench)
    task = Task(0, bench.options.clients, bodies=4 * bench.options.clients)
    if bench.is_tiny:
        task = replace(task, documents=(8, 8))
    loaded = _warm_and_apply(bench, service, task)
    row |= _figures(loaded) | sizes.figures(loaded.pairs_per_s, bench.peak_flops)
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
    closed = pairs_per_s * sizes.own / sizes.own_of(words)
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
    """How many tokens the model computes for a pair of the throughput's load. `own`: those of its own;
    `shared`: the start of the prompt, computed once a request."""

    model: Model
    tokenizer: Tokenizer
    documents: int
    own: float
    shared: float

    @classmethod
    def of(cls, shape: Shape, folder: Path, bench: Bench) -> Sizes:
        model = prepare(Settings(model=str(folder), home=bench.home, engine="torch"))
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        empty = cls(model, tokenizer, 8 if bench.is_tiny else DOCUMENTS, 0.0, 0.0)
        pick = random.Random(7)
        query = load.text(pick, load.QUERY_WORDS + 1)
        shared = len(tokenizer.encode(empty._prompt(query, "").partition("\n<Document>")[0]).ids)
        return replace(
            empty,
            own=empty.own_of(100, query) if not shape.is_causal else empty.own_of(100, query) - shared,
            shared=float(shared) if shape.is_causal else 0.0,
        )

    def own_of(self, words: int, query: str = "") -> float:
        """The tokens of a pair whose document has this many words, without the shared ones."""
        pick = random.Random(words)
        query = query or load.text(pick, load.QUERY_WORDS + 1)
        counts = []
        for _ in range(40):
            text = load.text(pick, words)
            is_causal = self.model.recipe.method == "causal_lm"
            encoded = (self._prompt(query, text),) if is_causal else (query, text)
            counts.append(len(self.tokenizer.encode(*encoded).ids))
        return sum(counts) / len(counts) - self.shared

    def words_for(self, tokens: int) -> int:
        """The words of a document whose whole prompt has about this many tokens."""
        return next(words for words in range(20, 400, 5) if self.own_of(words) + self.shared >= tokens)

    def figures(self, pairs_per_s: float, peak_flops: float) -> dict[str, Any]:
        """The tokens that are computed for a pair, and the share of the peak that this rate is."""
        causal = self.model.recipe.method == "causal_lm"
        computed = self.own + self.shared / self.documents
        share = flops.share(
            self.model.metadata,
            causal=causal,
            pairs_per_s=pairs_per_s,
            tokens_per_pair=computed,
            peak_flops=peak_flops,
        )
        return {"tokens_per_pair": round(computed, 1), "of_peak": round(share or 0.0, 3)}

    def _prompt(self, query: str, document: str) -> str:
        recipe = self.model.recipe
        template = prompt.choose(recipe.template, instructed=bool(recipe.instruction))
        return prompt.fill(template, instruction=recipe.instruction, query=query, document=document)
