#!/usr/bin/env python3
"""nDCG@10 of lists whose documents are scored by two models in turn, before and after calibration.

    python bench/mixed_models.py builtin:e5 all-MiniLM-L6-v2-F32.gguf

The included collection, 20 candidates of BM25 for each query; every second one is scored by the second model.
Calibrated scores are those of held-out queries.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from rerankd import config
from rerankd.evaluation import bm25, calibrate, measure
from rerankd.evaluation.calibration_fits import scores
from rerankd.evaluation.collection import EVERYDAY, Collection, Ranking, read
from rerankd.progress import silent
from rerankd.service import Reranker
from rerankd.serving.prepare_model import prepare

Scores = Mapping[tuple[str, str], float]


async def scored(model: str, collection: Collection, candidates: Ranking) -> tuple[Scores, Scores]:
    """The model's own scores and its calibrated ones, by query and document."""
    settings = config.from_machine({"model": (model,)})
    prepared = prepare(settings)
    async with Reranker(settings, prepared=[prepared]) as reranker:

        async def ask(query: str, documents: Sequence[str]) -> list[float | None]:
            result = await reranker.rerank(query, documents, raw_scores=True, budget_ms=0)
            return [one.score / result.divisor for one in sorted(result.results, key=lambda one: one.index)]

        pairs = await calibrate.score_pairs(collection, candidates, 1, ask, silent)
    found = calibrate.fit(pairs, prepared.recipe.normalization)
    print(f"{model}: log loss {found.before.log_loss:.3f} → {found.after.log_loss:.3f} ({found.method})")
    keys = [(query, one) for query, documents in candidates.items() for one in documents]
    own = scores(pairs.raw, prepared.recipe.normalization)
    return dict(zip(keys, own, strict=True)), dict(zip(keys, found.held_out, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs=2, metavar="MODEL")
    collection = read(EVERYDAY)
    candidates = bm25.rank(collection, 20, silent)
    both = [asyncio.run(scored(model, collection, candidates)) for model in parser.parse_args().models]
    (ndcg,) = measure.parse(("nDCG@10",))

    def of(score: Callable[[str, str, int], float]) -> float:
        ranking = {
            query: tuple(sorted(documents, key=lambda one: -score(query, one, documents.index(one) % 2)))
            for query, documents in candidates.items()
        }
        return fmean(measure.of_queries(collection.judgements, ranking, ndcg).values())

    for name, model in (("first alone", 0), ("second alone", 1)):
        print(f"{name}: {of(lambda query, one, _, model=model: both[model][0][query, one]):.3f}")
    for name, kind in (("mixed, own scores", 0), ("mixed, calibrated", 1)):
        print(f"{name}: {of(lambda query, one, half, kind=kind: both[half][kind][query, one]):.3f}")


if __name__ == "__main__":
    main()
