"""(pure) The precision of the arithmetic: float32, or bf16 if it is faster and keeps the order of documents.

OpenVINO reports bf16 support on every CPU with AVX512_BF16, and on some without. Which precision is faster
depends on the CPU. MiniLM's throughput in bf16 is 45,000 tokens/s with AMX, 8,800 tokens/s with AVX512_BF16
alone (slower than f32), and 456 tokens/s with neither (13,100 in f32). So the CPU's flags decide whether bf16
is tested, a measurement whether it is faster, and the model's own scores whether it is accurate enough. The
trial (trial.py) runs once per model and machine, and its result is stored (precision_choice.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from rerankd.normalization import Normalization
from rerankd.scoring import normalize

Precision = Literal["f32", "bf16"]
Wanted = Literal["auto", "f32", "bf16", "fp8", "int8"]
"""The setting. OpenVINO has no fp8 on a CPU, and takes it for auto; a model in int8 runs on another
engine."""

# The minimum speed-up that is worth bf16's loss of accuracy.
_FASTER_BY = 1.15
_BF16 = frozenset(("amx_bf16", "avx512_bf16"))
LARGEST_GAP = 0.01
"""Documents whose float32 scores differ by more than this must keep their order in bf16."""
# If all of a query's scores are near 0 or 1, only raw scores distinguish documents. Then this share of their
# range corresponds to LARGEST_GAP.
_RAW_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision, and the reason for it in words."""

    precision: Precision
    why: str


@dataclass(frozen=True, slots=True)
class Trial:
    """The result of a trial. `ratio` is the CPU time in f32 divided by that in bf16. `gap` is the largest
    difference in float32 scores of two documents whose order changed in bf16; None if bf16 was too slow to
    compare scores."""

    ratio: float
    gap: float | None


def is_worth_it(ratio: float) -> bool:
    """Whether bf16 is fast enough to test its accuracy."""
    return ratio > _FASTER_BY


def without_trial(wanted: Wanted, instructions: Collection[str]) -> Choice | None:
    """Return the choice that needs no trial, or None. `instructions` are those of the CPU (see
    machine.py)."""
    if wanted != "f32" and not _bf16_flags(instructions):  # OpenVINO then ignores the setting and uses f32
        return Choice("f32", "this CPU has no bf16 arithmetic")
    return Choice(wanted, "set by the user") if wanted in ("f32", "bf16") else None


def possible(wanted: Wanted, instructions: Collection[str]) -> tuple[Precision, ...]:
    """Return the precisions that a model may get."""
    if wanted == "f32" or not _bf16_flags(instructions):
        return ("f32",)
    return ("bf16",) if wanted == "bf16" else ("f32", "bf16")


def after(trial: Trial, instructions: Collection[str]) -> Choice:
    """Return the choice after a trial."""
    reason = (
        f"this CPU has {' and '.join(_bf16_flags(instructions))}, and bf16 is {trial.ratio:.1f} times as fast"
    )
    if trial.gap is None:
        return Choice("f32", reason)
    if trial.gap > LARGEST_GAP:
        return Choice("f32", f"{reason}, but it swaps documents whose scores differ by {trial.gap:.2g}")
    return Choice("bf16", f"{reason} and keeps the order")


def largest_swap(exact: Sequence[float], rough: Sequence[float], normalization: Normalization) -> float:
    """Return the largest score difference between two documents of one query whose order changes, or 0. If
    scores are saturated, the difference is that of the raw scores, rescaled. `exact` and `rough` are raw
    scores."""
    span = max(exact) - min(exact)
    shown = [normalize.score(value, normalization) for value in exact]
    order = sorted(range(len(exact)), key=lambda at: -exact[at])
    worst = 0.0
    for place, better in enumerate(order):
        for worse in order[place + 1 :]:
            if rough[better] < rough[worse] and exact[better] > exact[worse]:
                raw_share = (exact[better] - exact[worse]) / span
                worst = max(worst, shown[better] - shown[worse], raw_share / _RAW_SHARE * LARGEST_GAP)
    return worst


def _bf16_flags(instructions: Collection[str]) -> list[str]:
    return sorted(_BF16 & set(instructions))
