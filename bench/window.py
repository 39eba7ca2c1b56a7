"""What truncation costs: python bench/window.py [--documents 100] [--words 2000] [--rounds 5]

The built-in model, documents far longer than its window, in one run and in turns: the whole documents, which
rerankd must truncate, and the same documents cut to their first part by hand, which it need not.
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
    took: dict[str, list[float]] = {"whole": [], "cut": []}
    whole = [text(WORDS, options.words, f"document {at}") for at in range(options.documents)]
    async with Reranker(from_machine({"cache_entries": 0})) as reranker:
        # As many words as the window holds of these: measured, not guessed.
        size = 400
        reader = await reranker.registry.find(None).reader()
        prepared = await reader.prepare(text(WORDS, 8, "query"))
        while (
            await reader.read(prepared, [" ".join(whole[0].split()[: size + 1])])
        ).truncated == frozenset():
            size += 1
        cut = [" ".join(document.split()[:size]) for document in whole]
        for at in range(options.rounds):
            query = text(WORDS, 8, f"query {at}")
            whole_s, whole_tokens = await timed(reranker, query, whole)
            cut_s, cut_tokens = await timed(reranker, query, cut)
            took["whole"].append(whole_s / whole_tokens)
            took["cut"].append(cut_s / cut_tokens)
            print(
                f"whole {whole_s:.2f} s for {whole_tokens} tokens, cut by hand {cut_s:.2f} s for {cut_tokens}"
            )
    added = [100 * (a / b - 1) for a, b in zip(took["whole"], took["cut"], strict=True)]
    print(f"added by truncation, a token: median {statistics.median(added):.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--words", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    asyncio.run(main(parser.parse_args()))
