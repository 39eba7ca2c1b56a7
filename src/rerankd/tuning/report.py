"""(pure) The report of a tuning: did it help?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from rerankd.evaluation import measure
from rerankd.evaluation.collection import Ranking
from rerankd.evaluation.measure import Judgements

MEASURE = "nDCG@10"
SIGNIFICANT = 0.05
FIRST, BASE, TUNED, TEACHER = "first stage", "base", "tuned", "teacher"


@dataclass(frozen=True, slots=True)
class Row:
    """One ranking of the held-out queries. `better` and `worse` count queries, `p` is the significance; all
    three compare it with the base model, or with the first stage if the base has no head to score with."""

    what: str
    name: str
    ndcg: float
    better: int
    worse: int
    p: float


@dataclass(frozen=True, slots=True)
class Report:
    """`training`, `validation`, `held_out`: the number of queries; `examples`: of pairs. `is_judged`: the
    held-out queries have judgements; otherwise the rows show the agreement with the teacher.
    `served_difference`: by how much served raw scores differ from the trainer's at most, `served_by` names
    the engine."""

    output: str
    training: int
    validation: int
    held_out: int
    examples: int
    depth: int
    is_judged: bool
    best_step: int
    is_early: bool
    served_difference: float
    served_by: str
    rows: Sequence[Row]

    @property
    def compared(self) -> Row:
        """The row with which the others are compared."""
        return next((one for one in self.rows if one.what == BASE), self.rows[0])

    @property
    def tuned(self) -> Row:
        return next(one for one in self.rows if one.what == TUNED)


def rows(judgements: Judgements, rankings: Mapping[tuple[str, str], Ranking], seed: int) -> list[Row]:
    """Compare rankings, by what they are and the name, with the base model's, or with the first one. They
    have the order of the report."""
    base = next((one for (what, _), one in rankings.items() if what == BASE), next(iter(rankings.values())))
    found = []
    for (what, name), ranking in rankings.items():
        (compared,) = measure.compare(judgements, base, ranking, [MEASURE], seed)
        gains = [gain for gain, _ in compared.changes()]
        better = sum(gain > 0 for gain in gains)
        ndcg = fmean(compared.after.values())
        found.append(Row(what, name, ndcg, better, len(gains) - better, compared.p))
    return found


def verdict(report: Report) -> str:
    """Whether the tuned model is better than the base, as a sentence."""
    base, tuned = report.compared, report.tuned
    other, keep = ("the base", "Keep the base model") if base.what == BASE else (base.name, "Do not use it")
    gain = tuned.ndcg - base.ndcg
    figures = f"{gain:+.4f} {MEASURE}, p {tuned.p:.4f}"
    if tuned.p >= SIGNIFICANT:
        return (
            f"No significant difference ({figures}): these queries do not show that the tuned model is "
            f"better than {other}. {keep}, or tune with more queries."
        )
    if gain < 0:
        return f"The tuned model is worse than {other} ({figures}). {keep}."
    return f"The tuned model is better than {other} ({figures})."


def text(report: Report) -> str:
    """Return the report as text."""
    width = max(len(f"{one.what} {one.name}") for one in report.rows)
    lines = [
        f"trained:  {report.training} queries, {report.examples} pairs; best checkpoint at step "
        f"{report.best_step}{', stopped early' if report.is_early else ''}",
        f"chosen:   by {report.validation} other queries",
        f"measured: {report.held_out} held-out queries, the best {report.depth} documents of BM25 reranked",
    ]
    if not report.is_judged:
        lines.append("The collection has no judgements: nDCG@10 is the agreement with the teacher's order.")
    lines += ["", f"{'':{width}}  nDCG@10  better  worse        p"]
    for one in report.rows:
        compared = "" if one == report.compared else f"  {one.better:6}  {one.worse:5}  {one.p:7.4f}"
        lines.append(f"{f'{one.what} {one.name}':{width}}   {one.ndcg:6.4f}{compared}")
    lines += [
        "",
        f"better, worse and p compare with the {report.compared.what}, query by query (paired randomisation",
        "test).",
        verdict(report),
        f"Scores served by {report.served_by} differ from the trainer's by at most "
        f"{report.served_difference:.1g} (raw).",
        f"To serve it: rerankd serve {report.output}",
    ]
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """Return the report as JSON values."""
    return {**asdict(report), "verdict": verdict(report)}
