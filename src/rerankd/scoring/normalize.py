"""(pure) Normalize raw scores, and rank documents by them.

Documents are ranked by raw score. Two raw scores may normalize to the same score (a cosine above the upper
bound, a logit above 37), and then the normalized scores do not show which document is better.

A document without a raw score (None) is blank or could not be scored. It is ranked after all others, with the
score 0.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Collection, Sequence

from rerankd.errors import EngineError
from rerankd.normalization import Normalization

# exp(-87) is about the smallest normal float32: no document that was read has a lower score.
_LOWEST_LOGIT = -87.0


def score(raw: float, how: Normalization) -> float:
    """Normalize one raw score to [0, 1] by the formula of `how` (see Normalization)."""
    raw /= how.divisor
    if how.name == "sigmoid":
        logit = (raw - how.logit_mean) / how.logit_sigma
        # Two forms, so that exp never overflows.
        return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))
    if how.name == "isotonic":
        return _between(raw, how.knots)
    value = raw if how.name == "identity" else (raw - how.low) / (how.high - how.low)
    return min(max(value, 0.0), 1.0)


def _between(raw: float, knots: Sequence[tuple[float, float]]) -> float:
    """The value at `raw` of the line through these points, which is constant outside of them."""
    above = bisect_right(knots, raw, key=lambda knot: knot[0])
    if above in (0, len(knots)):
        return knots[max(above - 1, 0)][1]
    (start, lower), (end, upper) = knots[above - 1 : above + 1]
    return lower + (upper - lower) * (raw - start) / (end - start)


def shown(values: Sequence[float | None], how: Normalization, *, raw: bool) -> list[float]:
    """The number to return for each document: its raw score if `raw`, else its score in [0, 1].

    A document without a raw score gets 0, or a raw score that normalizes to 0 and is not above any other:
    clients sort by this number.
    """
    if not raw:
        return [0.0 if value is None else score(value, how) for value in values]
    lowest_logit = how.logit_mean + how.logit_sigma * _LOWEST_LOGIT
    lowest_knot = how.knots[0][0] if how.knots else 0.0
    floor = {"sigmoid": lowest_logit, "affine": how.low, "identity": 0.0, "isotonic": lowest_knot}[how.name]
    floor *= how.divisor
    lowest = min((value for value in values if value is not None), default=floor)
    return [min(floor, lowest) if value is None else value for value in values]


def check_complete(raw: Sequence[float | None], errors: Collection[int]) -> None:
    """Raise EngineError if a raw score is NaN or infinite, or is missing without an entry in `errors`."""
    for position, value in enumerate(raw):
        if value is None and position not in errors:
            raise EngineError(f"The engine returned no score for pair {position}, and no reason.")
        if value is not None and not math.isfinite(value):
            raise EngineError(
                f"The engine returned {value} for pair {position}, which is not a valid score. The "
                "model file may be damaged, or the engine's arithmetic may fail on this machine; see the "
                "engine's log."
            )


def rank(values: Sequence[float | None]) -> list[int]:
    """Indexes of raw scores, best first. Ties keep their order, and None is ranked last."""
    return sorted(range(len(values)), key=lambda at: math.inf if (value := values[at]) is None else -value)
