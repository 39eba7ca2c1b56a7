"""(pure) The report of an evaluation, as text, as JSON and as a TREC run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rerankd.evaluation.collection import Collection, Ranking
from rerankd.evaluation.measure import Comparison
from rerankd.evaluation.second_stage import Reranked

_SHOWN_CHARACTERS = 90
_SHOWN_LINES = 5


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The results of an evaluation. `candidates` are the documents of the first stage, at most `depth` per
    query. Each of `comparisons` is one measure; the first one decides which queries are shown. `skipped` are
    the invalid lines that were ignored, with location and reason."""

    collection: Collection
    model: str
    first_stage: str
    depth: int
    candidates: Ranking
    reranked: Reranked
    comparisons: Sequence[Comparison]
    skipped: Sequence[str] = ()

    def found(self) -> float:
        """Return the share of all relevant documents that are among the candidates."""
        relevant = [
            (query, document)
            for query, grades in self.collection.judgements.items()
            for document, grade in grades.items()
            if grade > 0
        ]
        there = sum(document in self.candidates[query] for query, document in relevant)
        return there / len(relevant) if relevant else 0.0

    def timing(self) -> tuple[float, float]:
        """Return the seconds per query, p50 and p95."""
        seconds = sorted(self.reranked.seconds.values())
        return (median(seconds), seconds[math.ceil(0.95 * len(seconds)) - 1]) if seconds else (0.0, 0.0)


def text(evaluation: Evaluation, shown: int) -> str:
    """Return the report, with up to `shown` queries that lost most and as many that gained most."""
    collection = evaluation.collection
    half, most = evaluation.timing()
    lines = [
        f"{collection.name}: {len(collection.queries)} queries, {len(collection.documents)} documents",
        f"before: {evaluation.first_stage}, at most {evaluation.depth} documents per query",
        f"after:  the same documents, reranked by {evaluation.model}",
        *_left_out(evaluation),
        "",
        *_table(evaluation.comparisons),
        "",
        f"{evaluation.found():.1%} of the relevant documents were among the candidates.",
        f"Time per query: p50 {half:.3f} s, p95 {most:.3f} s.",
        "p is the probability of a difference this large by chance (paired randomisation test). Below 0.05",
        "the difference counts as significant; otherwise these queries do not decide it.",
    ]
    first = evaluation.comparisons[0]
    changes = first.changes()
    lost = [query for gain, query in changes if gain < 0][:shown]
    won = [query for gain, query in reversed(changes) if gain > 0][:shown]
    for title, queries in (("lost", lost), ("gained", won)):
        if queries:
            lines += ["", f"Queries that {title} most, by {first.measure}:"]
            for query in queries:
                lines += _query_lines(evaluation, query)
    return "\n".join(lines)


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return the report as JSON values, with every query."""
    half, most = evaluation.timing()
    collection = evaluation.collection
    return {
        "collection": collection.name,
        "queries": len(collection.queries),
        "documents": len(collection.documents),
        "model": evaluation.model,
        "first_stage": evaluation.first_stage,
        "depth": evaluation.depth,
        "own_documents_left_out": len(collection.own),
        "skipped_lines": list(evaluation.skipped),
        "relevant_among_candidates": evaluation.found(),
        "seconds_per_query": {"p50": half, "p95": most},
        "measures": {
            one.measure: {
                "before": one.mean_before,
                "after": one.mean_after,
                "p": one.p,
                "better": sum(gain > 0 for gain, _ in one.changes()),
                "worse": sum(gain < 0 for gain, _ in one.changes()),
            }
            for one in evaluation.comparisons
        },
        "per_query": [
            {
                "id": query,
                "text": text,
                "seconds": evaluation.reranked.seconds.get(query),
                **{
                    one.measure: {"before": one.before[query], "after": one.after[query]}
                    for one in evaluation.comparisons
                },
            }
            for query, text in collection.queries.items()
        ],
    }


def _left_out(evaluation: Evaluation) -> list[str]:
    lines = []
    if own := len(evaluation.collection.own):
        lines += [
            f"Queries that are also documents of the collection (same id): {own}. Each was excluded from",
            "its own candidates, as in BEIR's evaluation.",
        ]
    if skipped := evaluation.skipped:
        more = len(skipped) - _SHOWN_LINES
        lines += [
            f"Invalid lines that were skipped (--lenient): {len(skipped)}",
            *(f"  {line}" for line in skipped[:_SHOWN_LINES]),
            *([f"  and {more} more; --json lists all"] if more > 0 else []),
        ]
    return lines


def run_lines(ranking: Ranking, tag: str) -> list[str]:
    """Return a ranking as the lines of a TREC run; the scores only express the order."""
    tag = "_".join(tag.split()) or "rerankd"
    return [
        f"{query} Q0 {document} {rank} {len(documents) - rank + 1} {tag}"
        for query, documents in ranking.items()
        for rank, document in enumerate(documents, 1)
    ]


def _table(comparisons: Sequence[Comparison]) -> list[str]:
    width = max(len("measure"), *(len(one.measure) for one in comparisons))
    lines = [f"{'measure':{width}}  before   after   change        p  better  worse  same"]
    for one in comparisons:
        changes = one.changes()
        better = sum(gain > 0 for gain, _ in changes)
        lines.append(
            f"{one.measure:{width}}  {one.mean_before:6.4f}  {one.mean_after:6.4f}  "
            f"{one.mean_after - one.mean_before:+7.4f}  {one.p:7.4f}  {better:6}  {len(changes) - better:5}  "
            f"{len(one.before) - len(changes):4}"
        )
    return lines


def _query_lines(evaluation: Evaluation, query: str) -> list[str]:
    """Return a query's gain, its first document after reranking, and the ranks of its best judged
    document."""
    first = evaluation.comparisons[0]
    collection = evaluation.collection
    grades = collection.judgements[query]
    gain = first.after[query] - first.before[query]
    after = evaluation.reranked.ranking[query]
    lines = [f"  {gain:+.3f}  {query}: {_short(collection.queries[query])}"]
    if after:
        top = after[0]
        lines.append(f"    now first, grade {grades.get(top, 0)}: {top}: {_short(collection.documents[top])}")
    best = max(grades, key=grades.__getitem__)
    if not after or best != after[0]:
        before = _rank(evaluation.candidates[query], best)
        lines.append(
            f"    grade {grades[best]}, rank {before} before and {_rank(after, best)} after: {best}: "
            f"{_short(collection.documents[best])}"
        )
    return lines


def _rank(documents: Sequence[str], document: str) -> str:
    return str(documents.index(document) + 1) if document in documents else "none"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"
