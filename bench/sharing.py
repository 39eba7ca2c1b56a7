"""Fairness of the queue, time budgets and prompt prefixes: python bench/sharing.py [--part …] [--model …]

Sends requests to a Reranker in the same process, with the real engines and default settings. No text is sent
twice, so that no cache answers.

- shares: latency of 20 small requests of 8 short documents, one after the other, while 0, 1, 10 and 30 bulk
  requests of the same client and of others run; and the throughput of the bulk requests meanwhile and alone.
- budgets: requests of 200 documents with a time budget, on a model of Qwen3-Reranker-0.6B's size (random
  weights, 640 MB, created if missing).
- prefixes: two concurrent queries on a causal LM with one slot: how often llama.cpp processes a prompt prefix
  again, and the throughput compared with that of one query.
- size: 1,000 documents of 1 word up to max_length, and 20 documents.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import models

from rerankd import machine
from rerankd.backends.llama import completion
from rerankd.benchmark.load import text
from rerankd.client import ANONYMOUS, Client
from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.rerank_result import RerankResult
from rerankd.service import Reranker
from rerankd.serving.queue_scores import Answer
from support import golden_settings

_PICK = random.Random(1)
SMALL = 8


def request(documents: int, words: int | tuple[int, int], **more: Any) -> RerankRequest:
    lengths = [words if isinstance(words, int) else _PICK.randint(*words) for _ in range(documents)]
    return RerankRequest(text(_PICK, 8), tuple(text(_PICK, length) for length in lengths), **more)


class Bench:
    """A reranker, with the seconds and tokens of its engine calls."""

    def __init__(self, reranker: Reranker) -> None:
        self.reranker = reranker
        self.served = reranker.registry.find(None)
        self.calls: list[float] = []
        queue: Any = self.served.queue
        score = queue._score

        async def timed(inputs: Sequence[Any], is_wanted: Any) -> Answer:
            started = time.perf_counter()
            try:
                return await score(inputs, is_wanted)
            finally:
                self.calls.append(time.perf_counter() - started)

        queue._score = timed

    async def ask(self, asked: RerankRequest, client: Client = ANONYMOUS) -> tuple[float, RerankResult]:
        started = time.perf_counter()
        result = await self.reranker.answer(asked, client=client)
        return time.perf_counter() - started, result

    @property
    def waiting(self) -> int:
        return self.served.queue.scheduler.usage.documents


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Bench]:
    async with Reranker(settings, request_timeout_s=3600) as reranker:
        yield Bench(reranker)


async def small_requests(bench: Bench, count: int) -> list[float]:
    took = []
    for _ in range(count):
        took.append((await bench.ask(request(SMALL, 12)))[0])
        await asyncio.sleep(0.3)
    return took


async def shares(bench: Bench, options: argparse.Namespace) -> None:
    await small_requests(bench, 3)
    alone = await small_requests(bench, options.count)
    half = statistics.median(alone)
    print(f"small requests alone: p50 {half:.3f} s, p95 {p95(alone):.3f} s", flush=True)
    started = time.perf_counter()
    await bench.ask(request(100, options.words))
    rate = 100 / (time.perf_counter() - started)
    for many, whose in [(0, "others"), *itertools.product((1, 10, 30), ("the same", "others"))]:
        # The bulk requests must run until the last small request has been answered.
        needed = rate * (options.count * (0.3 + 3 * half) + 4 * options.seconds + 20)
        each = min(max(int(needed / max(many, 1)), 200), 10_000)
        owners = [ANONYMOUS if whose == "the same" else Client(f"client {at}") for at in range(many)]
        tasks = [asyncio.create_task(bench.ask(request(each, options.words), owner)) for owner in owners]
        while many and bench.waiting < each * many * 0.9:
            await asyncio.sleep(0.05)
        before = await bulk_rate(bench, options.seconds) if many else 0.0
        bench.calls.clear()
        began, left = time.perf_counter(), bench.waiting
        beside = await small_requests(bench, options.count)
        during = (left - bench.waiting) / (time.perf_counter() - began)
        longest = max(bench.calls)
        # The mean of before and after, as the machine's speed may have changed meanwhile.
        after = await bulk_rate(bench, options.seconds) if many else 0.0
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks) if tasks else None
        bound = 3 * half + longest
        kept = (
            f", bulk {during:.1f} documents/s, {during / ((before + after) / 2):.0%} of alone" if many else ""
        )
        print(
            f"beside {many:2} of {each} of {whose}: p50 {statistics.median(beside):.3f} s, "
            f"p95 {p95(beside):.3f} s; longest call {longest:.3f} s, with 3 x alone {bound:.3f} s{kept}",
            flush=True,
        )


async def bulk_rate(bench: Bench, seconds: float) -> float:
    """Return the throughput of the queued requests, in documents per second."""
    began, left = time.perf_counter(), bench.waiting
    await asyncio.sleep(seconds)
    return (left - bench.waiting) / (time.perf_counter() - began)


async def budgets(bench: Bench, options: argparse.Namespace) -> None:
    await bench.ask(request(2, options.words))
    for seconds in (0.5, 2.0, 5.0):
        for _ in range(3):
            bench.calls.clear()
            took, result = await bench.ask(request(200, options.words, budget_ms=int(seconds * 1000)))
            scored = 200 - len(result.unscored)
            print(
                f"budget {seconds:g} s: {took:.2f} s ({took / seconds:.0%}), {scored} of 200 scored, longest "
                f"call {max(bench.calls, default=0):.2f} s",
                flush=True,
            )


async def prefixes(bench: Bench, options: argparse.Namespace) -> None:
    """Record from each prompt's response how many tokens were processed and how many were reused from the
    previous prompt."""
    body, rows = completion.body, completion.rows
    runs: list[tuple[bytes, list[int]]] = []

    def with_timings(*args: Any) -> dict[str, Any]:
        made = body(*args)
        made["response_fields"] += ["timings"]
        return made

    def noted(answer: Any) -> Any:
        found = rows(answer)
        runs[-1][1].extend(row["timings"]["cache_n"] for row in found)
        return found

    completion.body, completion.rows = with_timings, noted  # type: ignore[assignment]
    engine: Any = bench.reranker.state.engine
    score = engine.score

    async def score_in_turn(batch: Any) -> Any:
        async with lock:
            runs.append((batch.inputs[0].question.key, []))
            return await score(batch)

    lock = asyncio.Lock()  # so that the timings of a response belong to this batch
    engine.score = score_in_turn
    count = options.documents
    figures = {}
    for name, queries in (("one query", 1), ("two queries", 2), ("one query again", 1), ("two again", 2)):
        runs.clear()
        began = time.perf_counter()
        await asyncio.gather(*(bench.ask(request(count, options.words)) for _ in range(queries)))
        figures[name] = queries * count / (time.perf_counter() - began)
        starts = [key for key, _ in itertools.groupby(key for key, _ in runs)]
        kept: dict[bytes, list[int]] = {}
        for key, found in runs:
            kept.setdefault(key, []).extend(found)
        # The prefix that all prompts of a query share is what each but the first of a run reused.
        shared = {key: statistics.median(counts) for key, counts in kept.items()}
        anew = sum(n < shared[key] * 0.9 for key, counts in kept.items() for n in counts)
        print(
            f"{name}: {figures[name]:.2f} documents/s, {len(runs)} batches in {len(starts)} runs; "
            f"a prompt prefix of {max(shared.values()):.0f} tokens was processed {anew} times, "
            f"{anew / len(starts):.2f} per run",
            flush=True,
        )


async def size(bench: Bench, options: argparse.Namespace) -> None:
    longest = bench.served.model.recipe.max_length // 2
    await bench.ask(request(20, 40))
    for rounds, documents, words in ((5, 20, 40), (2, options.documents, (1, longest))):
        took = [(await bench.ask(request(documents, words)))[0] for _ in range(rounds)]
        print(
            f"{documents} documents of {words} words: {statistics.median(took):.3f} s of {rounds}", flush=True
        )


def cpu() -> str:
    """Return the CPU's model, cores and relevant features."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    wide = [one for one in machine.instructions() if one in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")]
    return f"{name}, {machine.read().cores} cores, {' '.join(wide)}"


def p95(values: Sequence[float]) -> float:
    return statistics.quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


PARTS = {"shares": shares, "budgets": budgets, "prefixes": prefixes, "size": size}


def settings(options: argparse.Namespace, home: Path) -> Settings:
    if options.model == "builtin":
        return Settings(home=options.home, engine=options.engine)
    if options.model == "large":
        path = models.qwen3(options.folder, headed=False)
        made = golden_settings("qwen3-headless", home)
        return made.model_copy(update={"model": (str(path),), "force": True})
    return golden_settings("qwen3-headless", home).model_copy(update={"force": True})


async def run(options: argparse.Namespace) -> None:
    print(json.dumps({"cpu": cpu(), "model": options.model, "engine": options.engine}))
    with tempfile.TemporaryDirectory(prefix="rb") as home:
        async with opened(settings(options, Path(home))) as bench:
            await PARTS[options.part](bench, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=[*PARTS], default="shares")
    parser.add_argument("--model", choices=["builtin", "tiny", "large"], default="builtin")
    parser.add_argument("--engine", choices=["auto", "llama", "openvino"], default="auto")
    parser.add_argument("--home", type=Path, help="data folder with the built-in model")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--count", type=int, default=20, help="number of small requests")
    parser.add_argument("--words", type=int, default=60, help="words per bulk document")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument(
        "--seconds", type=float, default=5, help="duration of the measurement of bulk requests alone"
    )
    options = parser.parse_args()
    if options.home is None:
        options.home = Settings().home
    options.folder.mkdir(parents=True, exist_ok=True)
    asyncio.run(run(options))


if __name__ == "__main__":
    main()
