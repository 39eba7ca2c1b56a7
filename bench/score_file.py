"""How fast `rerankd score` is, next to the engine's own speed.

    python bench/score_file.py [MODEL] [--pairs 5000] [--rounds 2]

In each round, the pairs are scored through a file, and by requests to the same engine, all at once, 50
documents each. The score cache is off. Prints pairs per second of both, and their ratio in each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from rerankd import config
from rerankd.bulk.formats import format_of
from rerankd.bulk.job import Job, identity, run
from rerankd.bulk.parts import Parts
from rerankd.bulk.rows import Columns
from rerankd.progress import silent
from rerankd.service import Reranker
from rerankd.serving.prepare_model import prepare

TOGETHER = 50


def texts(count: int, seed: int) -> list[tuple[str, str]]:
    """Pairs with documents of 20 to 100 random words, 50 with the same query."""
    source = random.Random(seed)
    words = ["".join(source.choices("abcdefghijklmnop", k=source.randint(2, 8))) for _ in range(3000)]
    queries = [" ".join(source.choices(words, k=8)) for _ in range(-(-count // TOGETHER))]
    return [
        (queries[at // TOGETHER], " ".join(source.choices(words, k=source.randint(20, 100))))
        for at in range(count)
    ]


async def by_file(reranker: Reranker, pairs: Sequence[tuple[str, str]]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        source.write_text("".join(json.dumps({"query": q, "document": d}) + "\n" for q, d in pairs))
        began = time.perf_counter()
        job = Job(source, format_of(source, target, None), Columns())
        parts = Parts(target, job.format, job.columns)
        with parts.held(identity(job, reranker.model), restart=False):
            await run(job, reranker, parts, silent)
            parts.finish()
        return time.perf_counter() - began


async def by_requests(reranker: Reranker, pairs: Sequence[tuple[str, str]]) -> float:
    began = time.perf_counter()
    requests = [
        reranker.rerank(query, [document for _, document in rows], budget_ms=0)
        for query, rows in groupby(pairs, key=lambda pair: pair[0])
    ]
    await asyncio.gather(*requests)
    return time.perf_counter() - began


async def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("model", nargs="?", default="builtin:e5")
    flags.add_argument("--pairs", type=int, default=5000)
    flags.add_argument("--rounds", type=int, default=2)
    given = flags.parse_args()
    wanted = {"model": (given.model,), "cache_entries": 0, "request_timeout_s": 86_400.0}
    settings = config.from_machine(wanted)
    async with Reranker(settings, prepared=[prepare(settings)]) as reranker:
        for at in range(given.rounds):
            pairs = texts(given.pairs, at)
            took = [0.0, 0.0]
            for side in (at % 2, 1 - at % 2):
                took[side] = await (by_file, by_requests)[side](reranker, pairs)
            file, direct = (given.pairs / seconds for seconds in took)
            print(f"file {file:.1f}, requests {direct:.1f} pairs/s: {file / direct:.3f}", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
