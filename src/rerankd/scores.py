"""raw -> score, and the order of results. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rerankd.domain import Transform
from rerankd.errors import EngineError


def transform(raw: float, how: Transform) -> float:
    """The score in [0, 1] of one raw value; `how` says by which formula (see Transform)."""
    if how.name == "sigmoid":
        # Two forms, so that exp never overflows.
        return 1 / (1 + math.exp(-raw)) if raw >= 0 else math.exp(raw) / (1 + math.exp(raw))
    value = raw if how.name == "identity" else (raw - how.low) / (how.high - how.low)
    return min(max(value, 0.0), 1.0)


def check_finite(raw: Sequence[float]) -> None:
    """Raise EngineError where a raw value is NaN or infinite: such a value is never a score."""
    for position, value in enumerate(raw):
        if not math.isfinite(value):
            raise EngineError(
                f"The engine answered {value} for pair {position}: no score can be made of that. The "
                "model file may be damaged, or the engine's arithmetic fails on this machine; see the "
                "engine's log."
            )


def rank(scores: Sequence[float], top_n: int | None = None) -> list[int]:
    """Indices of the best `top_n` scores (None or 0: all), best first; ties keep their order."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return order[:top_n] if top_n else order
