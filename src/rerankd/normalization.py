"""How a raw score becomes a score from 0 to 1: the normalization of a recipe, and a calibration, which
replaces it.

A **calibration** is fitted on a collection with judgements (`rerankd eval --calibrate`), so that a score is
the probability that the document is relevant. It belongs to one model: its raw scores are those of these
weights and this recipe, in whatever precision an engine computes them.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, ClassVar, Literal

NormalizationName = Literal["sigmoid", "affine", "identity"]
CalibrationMethod = Literal["platt", "isotonic"]
MOST_KNOTS = 32
# Bounds of logit_mean and logit_sigma, as in the settings.
LARGEST = 1e6


@dataclass(frozen=True, slots=True)
class Normalization:
    """The function that maps a raw score to a normalized score in [0, 1].

    `sigmoid`: 1 / (1 + exp(-x)) with x = (raw - logit_mean) / logit_sigma, for logits and differences of
    logits (the softmax over two labels is the sigmoid of the difference of their logits). The two parameters
    have the names that vLLM's pooler configuration gives them. `affine`: (raw - low) / (high - low), clipped
    to [0, 1], for cosines. `identity`: the raw score, clipped to [0, 1]. `isotonic`: linear between `knots`,
    which are pairs of a raw score and its score, both ascending; constant below the first and above the last.
    `raw` is first divided by `divisor`: for MaxSim, the number of the query's vectors.
    """

    name: NormalizationName | Literal["isotonic"]
    low: float = 0.0
    high: float = 1.0
    logit_mean: float = 0.0
    logit_sigma: float = 1.0
    divisor: int = 1
    knots: tuple[tuple[float, float], ...] = ()

    @property
    def argument(self) -> str:
        """The argument of the sigmoid, as a formula."""
        shifted = "raw"
        if self.logit_mean:
            shifted = f"raw {'-' if self.logit_mean > 0 else '+'} {abs(self.logit_mean):g}"
        if self.logit_sigma == 1:
            return shifted
        return f"{f'({shifted})' if self.logit_mean else shifted} / {self.logit_sigma:g}"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A calibration, and what it was fitted on: a `[models.NAME.calibration]` section of rerankd.toml.

    `model` identifies the weights and the recipe (see recipes/calibrations.py). `collection` is a name, and
    `fitted` a date in ISO 8601. `queries`, `relevant` and `irrelevant` count what it was fitted on. `platt`
    has `logit_mean` and `logit_sigma`, `isotonic` has `knots` (see Normalization). `relevant_grade` is the
    lowest grade that counted as relevant, `unjudged_irrelevant` whether documents without a judgement counted
    as not relevant.

    `log_loss`, `brier` and `ece` (the expected calibration error) have two values, of the model's own scores
    and of calibrated ones, for queries that were not used to fit the latter. `reliability` are bins of these
    calibrated scores: the mean score, the share of relevant documents, and the number of documents.

    Raises ValueError, with a clause, for a value that is out of range.
    """

    # Unknown keys in the settings file are an error, as everywhere in it.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    model: str
    collection: str
    fitted: str
    queries: int
    relevant: int
    irrelevant: int
    method: CalibrationMethod
    log_loss: tuple[float, float]
    brier: tuple[float, float]
    ece: tuple[float, float]
    logit_mean: float | None = None
    logit_sigma: float | None = None
    knots: tuple[tuple[float, float], ...] = ()
    reliability: tuple[tuple[float, float, int], ...] = ()
    relevant_grade: int = 1
    unjudged_irrelevant: bool = False

    def __post_init__(self) -> None:
        if problem := next(chain(_wrong_facts(self), _wrong_function(self)), None):
            raise ValueError(problem)

    @property
    def pairs(self) -> int:
        """The number of pairs that it was fitted on."""
        return self.relevant + self.irrelevant

    def normalization(self, divisor: int = 1) -> Normalization:
        """The function that it puts in place of the model's own, for raw scores that are divided first."""
        if self.logit_mean is None or self.logit_sigma is None:
            return Normalization("isotonic", divisor=divisor, knots=self.knots)
        return Normalization(
            "sigmoid", logit_mean=self.logit_mean, logit_sigma=self.logit_sigma, divisor=divisor
        )

    @property
    def words(self) -> str:
        """What it was fitted on, as a clause."""
        return (
            f"calibrated by {self.method} on {self.collection}, {self.fitted}: {self.pairs} pairs of "
            f"{self.queries} queries, {self.relevant} relevant"
        )

    @property
    def quality(self) -> str:
        """What it improves on queries that were not used to fit it."""
        parts = (("log loss", self.log_loss), ("Brier score", self.brier), ("calibration error", self.ece))
        return ", ".join(f"{name} {before:.3f} → {after:.3f}" for name, (before, after) in parts)


def _wrong_facts(one: Calibration) -> Iterator[str]:
    """What can't be true of where a calibration comes from and how good it is, as clauses."""
    if not re.fullmatch("[0-9a-f]{32}", one.model):
        yield "model must have 32 hexadecimal digits, which rerankd eval --calibrate prints"
    if not _is_date(one.fitted):
        yield "fitted must be a date such as 2026-11-27"
    counts = ("queries", "relevant", "irrelevant", "relevant_grade")
    yield from (f"{name} must be 1 or more" for name in counts if getattr(one, name) < 1)
    if one.queries > one.pairs:
        yield "queries must not be more than relevant and irrelevant documents together"
    if not all(0 <= value < math.inf for value in one.log_loss):
        yield "log_loss has finite numbers that are 0 or more"
    for name, values in (("brier", one.brier), ("ece", one.ece)):
        if not all(0 <= value <= 1 for value in values):
            yield f"{name} has numbers from 0 to 1"
    if not all(0 <= score <= 1 and 0 <= share <= 1 and count >= 1 for score, share, count in one.reliability):
        yield "each bin of reliability is a score and a share from 0 to 1, and a count of 1 or more"
    if any(bin[0] > after[0] for bin, after in pairwise(one.reliability)):
        yield "the scores of the bins of reliability must not descend"
    if one.reliability and sum(count for *_, count in one.reliability) != one.pairs:
        yield f"the counts of reliability must add up to the {one.pairs} relevant and irrelevant documents"


def _wrong_function(one: Calibration) -> Iterator[str]:
    """What keeps the parameters of a calibration from being a function of its method, as clauses."""
    if one.method == "platt":
        mean, sigma = one.logit_mean, one.logit_sigma
        if mean is None or sigma is None or one.knots:
            yield "platt has logit_mean and logit_sigma, and no knots"
        elif not (abs(mean) <= LARGEST and 1 / LARGEST <= sigma <= LARGEST):
            yield (
                f"logit_mean must be from {-LARGEST:g} to {LARGEST:g}, and logit_sigma from {1 / LARGEST:g} "
                f"to {LARGEST:g}"
            )
        return
    if not 1 <= len(one.knots) <= MOST_KNOTS or (one.logit_mean, one.logit_sigma) != (None, None):
        yield f"isotonic has 1 to {MOST_KNOTS} knots, and no logit_mean or logit_sigma"
    if not all(math.isfinite(raw) and 0 <= score <= 1 for raw, score in one.knots):
        yield "each knot is a raw score and a score from 0 to 1"
    if any(knot[0] >= after[0] or knot[1] > after[1] for knot, after in pairwise(one.knots)):
        yield "the raw scores of knots must ascend, and their scores must not descend"


def _is_date(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
