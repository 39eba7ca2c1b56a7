"""Score with models as they are served: the teacher's labels, and the final measurement."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from rerankd import config
from rerankd.config import Settings
from rerankd.evaluation import second_stage
from rerankd.evaluation.collection import Collection, Ranking
from rerankd.progress import Progress, step
from rerankd.service import Reranker
from rerankd.serving.prepare_model import Model, prepare
from rerankd.tuning.labels import Labels

# A large teacher on a CPU takes this long for the documents of some queries.
_TIMEOUT_S = 3600


async def find(settings: Settings, model: str, progress: Progress) -> Model:
    """Prepare a model by the name that the user gives it. Raises what `prepare` raises."""
    return await asyncio.to_thread(prepare, settings, settings.of(model), progress)


@contextlib.asynccontextmanager
async def served(settings: Settings, model: Model, progress: Progress) -> AsyncIterator[Reranker]:
    """Start an engine with a model. Raises what `Reranker` raises."""
    settings = config.override(settings, {"request_timeout_s": _TIMEOUT_S})
    async with contextlib.AsyncExitStack() as stack:
        with step(progress, f"loading {model.name}"):
            reranker = await stack.enter_async_context(Reranker(settings, prepared=[model]))
        yield reranker


async def ranking(
    reranker: Reranker, collection: Collection, candidates: Ranking, what: str, progress: Progress
) -> Ranking:
    """Rerank the candidates of each query."""

    async def ask(query: str, documents: Sequence[str]) -> Sequence[int]:
        result = await reranker.rerank(query, documents, truncate_query=True, budget_ms=0)
        return [scored.index for scored in result.results]

    def report(_: str, done: int, total: int) -> None:
        progress(f"measuring the {what}", done, total)

    return (await second_stage.rerank(collection, candidates, ask, report)).ranking


async def difference(reranker: Reranker, check: Path) -> float:
    """By how much served raw scores differ from the trainer's at most, for the pairs of check.json."""
    pairs = json.loads(check.read_text(encoding="utf-8"))
    found = [
        await reranker.rerank(pair["query"], [pair["document"]], raw_scores=True, budget_ms=0)
        for pair in pairs
    ]
    return max(
        (abs(one.results[0].score - pair["raw"]) for one, pair in zip(found, pairs, strict=True)), default=0.0
    )


def by_labels(labels: Labels, collection: Collection, candidates: Ranking) -> Ranking:
    """The teacher's order of the candidates; those without a label come last."""

    def value(query: str, document: str) -> float:
        label = labels.get(collection.queries[query], collection.documents[document])
        return float("-inf") if label is None else label

    return {
        query: tuple(sorted(found, key=lambda one: -value(query, one))) for query, found in candidates.items()
    }
