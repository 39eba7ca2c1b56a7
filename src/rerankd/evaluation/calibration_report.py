"""(pure) The report of a calibration, as text and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rerankd.domain import Method
from rerankd.evaluation.calibrate import LEAST_OF_EACH, Fit
from rerankd.evaluation.calibration_quality import FEW, Bin, Threshold
from rerankd.normalization import Calibration

_BAR = 20
# Below these numbers of pairs of each kind, figures move visibly with the folds.
_COMFORTABLE = 4 * LEAST_OF_EACH


@dataclass(frozen=True, slots=True)
class Report:
    """What the command prints. `precision` is the wanted one, `lines` are the settings."""

    model: str
    scoring: Method
    fit: Fit
    calibration: Calibration
    precision: float
    threshold: Threshold | None
    lines: str


def text(report: Report) -> str:
    """The report for a person."""
    fit, calibration = report.fit, report.calibration
    lines = [
        f"{calibration.collection}: {calibration.pairs} pairs of {calibration.queries} queries, "
        f"{calibration.relevant} relevant (grade {calibration.relevant_grade} or more)",
        f"scored by {report.model}; each figure is of queries that were held out of the fit",
        *_left_out(report),
        "",
        f"{'':22}{'log loss':>9} {'Brier':>7} {'ECE':>7}",
    ]
    rows = [
        ("the model's own scores", fit.before),
        *((_named(report, one), fit.both[one]) for one in fit.both),
    ]
    lines += [f"{name:22}{found.log_loss:9.4f} {found.brier:7.4f} {found.ece:7.4f}" for name, found in rows]
    lines += [
        f"{'one score for all':22}{fit.base:9.4f}",
        "",
        "own scores: share of relevant documents by score",
        *_bins(fit.before.bins),
        "",
        "calibrated scores: share of relevant documents by score",
        *_bins(fit.after.bins),
        "",
        *_threshold(report),
    ]
    if not fit.is_better:
        lines += ["", "The model's own scores are better probabilities already. Do not add this calibration."]
    lines += ["", "# rerankd.toml", report.lines, *_for_vllm(report)]
    return "\n".join(lines)


def as_json(report: Report) -> dict[str, Any]:
    """The report as JSON values."""
    fit, found = report.fit, report.threshold
    few = found is not None and found.is_from_few
    return {
        "model": report.model,
        "calibration": asdict(report.calibration),
        "is_better": fit.is_better,
        "left_out": fit.pairs.left_out,
        "own_scores": asdict(fit.before),
        "methods": {method: asdict(one) for method, one in fit.both.items()},
        "log_loss_of_one_score": fit.base,
        "threshold": {"wanted_precision": report.precision, **asdict(found), "is_from_few": few}
        if found is not None
        else None,
        "settings": report.lines,
    }


def _named(report: Report, method: str) -> str:
    return f"{method}{' (chosen)' if method == report.fit.method else ''}"


def _left_out(report: Report) -> list[str]:
    lines = []
    if report.calibration.unjudged_irrelevant:
        lines.append("Unjudged candidates count as not relevant (--unjudged-irrelevant).")
    if left_out := report.fit.pairs.left_out:
        lines.append(f"Left out, since the document is blank or could not be scored: {left_out} pairs.")
    calibration = report.calibration
    if min(calibration.relevant, calibration.irrelevant) < _COMFORTABLE:
        lines.append(
            f"Few judgements: with fewer than {_COMFORTABLE} of each kind, these figures are rough, and more "
            "may change the fit."
        )
    return lines


def _bins(bins: Sequence[Bin]) -> list[str]:
    return [
        f"  {score:5.2f}  {share:5.2f}  {'█' * round(share * _BAR):{_BAR}}  {count:5} documents"
        for score, share, count in bins
    ]


def _threshold(report: Report) -> list[str]:
    found, wanted = report.threshold, report.precision
    if found is None:
        return [f"No score_threshold reaches a precision of {wanted:g} on this collection."]
    lines = [
        f"For a precision of {wanted:g}: score_threshold = {found.score:g}.",
        f"{found.documents} of the pairs reach it; {found.precision:.0%} of them are relevant (95 % interval "
        f"{found.low:.0%} to {found.high:.0%}),",
        f"which is {found.recall:.0%} of all relevant ones.",
    ]
    if found.is_from_few:
        lines.append(f"These are fewer than {FEW} documents: judge more before you rely on the threshold.")
    return lines


def _for_vllm(report: Report) -> list[str]:
    """The same function in vLLM, which has a sigmoid with these parameters for models with a logit."""
    one = report.calibration
    if one.method != "platt" or report.scoring not in ("cross_encoder", "causal_lm"):
        return []
    config = json.dumps({"logit_mean": one.logit_mean, "logit_sigma": one.logit_sigma})
    return ["", f"# vLLM: --pooler-config '{config}'"]
