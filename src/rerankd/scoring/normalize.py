"""raw -> score, and the order of results. Pure.

The order comes from raw values. A score only shows them: two raw values may have the same score (a cosine
above the upper bound, a logit above 37), and then the scores can't tell which document is better.

A document without a value (None) is blank or could not be scored. It comes after all others, and its score
is 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from rerankd.domain import Normalization
from rerankd.errors import EngineError

# exp(-87) is about the smallest normal number of float32: no score of a document that was read is lower.
_LOWEST_LOGIT = -87.0


def score(raw: float, how: Normalization) -> float:
    """The score in [0, 1] of one raw value; `how` says by which formula (see Normalization)."""
    if how.name == "sigmoid":
        # Two forms, so that exp never overflows.
        return 1 / (1 + math.exp(-raw)) if raw >= 0 else math.exp(raw) / (1 + math.exp(raw))
    value = raw if how.name == "identity" else (raw - how.low) / (how.high - how.low)
    return min(max(value, 0.0), 1.0)


def shown(values: Sequence[float | None], how: Normalization, *, raw: bool) -> list[float]:
    """The number to show for each document: its raw value if `raw`, else its score in [0, 1].

    For a document without a value that is 0, or a raw value that normalizes to 0 and that no other document
    is below: clients sort by it.
    """
    if not raw:
        return [0.0 if value is None else score(value, how) for value in values]
    floor = {"sigmoid": _LOWEST_LOGIT, "affine": how.low, "identity": 0.0}[how.name]
    lowest = min((value for value in values if value is not None), default=floor)
    return [min(floor, lowest) if value is None else value for value in values]


def check_complete(raw: Sequence[float | None], errors: Collection[int]) -> None:
    """Raise EngineError where a raw value is NaN or infinite (such a value is never a score), or is missing
    without an entry in `errors`."""
    for position, value in enumerate(raw):
        if value is None and position not in errors:
            raise EngineError(f"The engine answered no value for pair {position}, and no reason.")
        if value is not None and not math.isfinite(value):
            raise EngineError(
                f"The engine answered {value} for pair {position}: no score can be made of that. The "
                "model file may be damaged, or the engine's arithmetic fails on this machine; see the "
                "engine's log."
            )


def rank(values: Sequence[float | None]) -> list[int]:
    """Indices of raw values, the best first; ties keep their order, and None comes last."""
    return sorted(range(len(values)), key=lambda at: math.inf if (value := values[at]) is None else -value)
