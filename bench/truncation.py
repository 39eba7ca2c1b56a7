"""Cost of truncation: python bench/truncation.py [--documents 100] [--words 2000] [--rounds 5]

Scores documents far longer than the built-in model's max_length, and the same documents shortened beforehand
so that rerankd need not truncate them, in alternation and in one run.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence

from programs import text

from rerankd import Reranker
from rerankd.config import from_machine

WORDS = ("panda", "bear", "river", "mountain", "bread", "ticket", "weather", "library", "guitar", "pizza")


async def timed(reranker: Reranker, query: str, documents: Sequence[str]) -> tuple[float, int]:
    started = time.perf_counter()
    result = await reranker.rerank(query, documents)
    return time.perf_counter() - started, result.tokens


async def main(options: argparse.Namespace) -> None:
    took: dict[str, list[float]] = {"whole": [], "short": []}
    whole = [text(WORDS, options.words, f"document {at}") for at in range(options.documents)]
    async with Reranker(from_machine({"cache_entries": 0})) as reranker:
        # Find the number of words that fit max_length.
        size = 400
        reader = await reranker.registry.find(None).reader()
        prepared = await reader.prepare(text(WORDS, 8, "query"))
        while (
            await reader.read(prepared, [" ".join(whole[0].split()[: size + 1])])
        ).truncated == frozenset():
            size += 1
        short = [" ".join(document.split()[:size]) for document in whole]
        for at in range(options.rounds):
            query = text(WORDS, 8, f"query {at}")
            whole_s, whole_tokens = await timed(reranker, query, whole)
            short_s, short_tokens = await timed(reranker, query, short)
            took["whole"].append(whole_s / whole_tokens)
            took["short"].append(short_s / short_tokens)
            print(
                f"whole {whole_s:.2f} s for {whole_tokens} tokens, shortened beforehand {short_s:.2f} s for "
                f"{short_tokens}"
            )
    added = [100 * (a / b - 1) for a, b in zip(took["whole"], took["short"], strict=True)]
    print(f"added by truncation, per token: median {statistics.median(added):.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--words", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(main(parser.parse_args()))
