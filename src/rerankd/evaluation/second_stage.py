"""The second stage: rerank the candidates of each query, one query after the other, and measure the time."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from rerankd.evaluation.collection import Collection, Ranking
from rerankd.progress import Progress

# Takes a query and documents, and returns the indexes of the documents, best first.
Ask = Callable[[str, Sequence[str]], Awaitable[Sequence[int]]]


@dataclass(frozen=True, slots=True)
class Reranked:
    """The reranked documents of each query, and the time in seconds."""

    ranking: Ranking
    seconds: Mapping[str, float]


async def rerank(collection: Collection, candidates: Ranking, ask: Ask, progress: Progress) -> Reranked:
    """Rerank the candidates of every query. Raises what `ask` raises."""
    ranking: dict[str, tuple[str, ...]] = {}
    seconds: dict[str, float] = {}
    for at, (query, found) in enumerate(candidates.items()):
        progress("reranking", at, len(candidates))
        if not found:
            ranking[query] = ()
            continue
        started = time.perf_counter()
        order = await ask(collection.queries[query], [collection.documents[one] for one in found])
        seconds[query] = time.perf_counter() - started
        ranking[query] = tuple(found[index] for index in order)
    progress("reranking", len(candidates), len(candidates))
    return Reranked(ranking, seconds)
