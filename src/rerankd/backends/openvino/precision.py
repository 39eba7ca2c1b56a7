"""(pure) The precision of the arithmetic: float32, or bf16 where it is faster and keeps the order.

OpenVINO says of every CPU with AVX512_BF16 that it can do bf16, and of some without. Which is faster depends
on the CPU: in bf16 MiniLM reads 45,000 tokens a second with AMX, 8,800 with AVX512_BF16 alone (less than in
f32), and 456 with neither (13,100 in f32). So the CPU's flags say whether bf16 is tried at all, a measurement
whether it is worth it, and the model's own scores whether it does no harm. That trial (see trial.py) is made
once for a model on a machine, and its result kept (see precision_choice.py).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from rerankd.domain import Normalization
from rerankd.scoring import normalize

Precision = Literal["f32", "bf16"]
Wanted = Literal["auto", "f32", "bf16"]

# bf16 has to be worth what it costs in accuracy.
_FASTER_BY = 1.15
_BF16 = frozenset(("amx_bf16", "avx512_bf16"))
LARGEST_GAP = 0.01
"""Two documents whose float32 scores differ by more may not change places in bf16."""
# Where all of a query's scores are near 0 or 1, raw values tell documents apart: then this share of their
# range counts as LARGEST_GAP.
_RAW_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision, and why in words."""

    precision: Precision
    why: str


@dataclass(frozen=True, slots=True)
class Trial:
    """What was measured: `ratio` is the CPU time in f32 over that in bf16, `gap` the largest difference of
    two documents' float32 scores that changed places in bf16; None where bf16 is too slow to be tried."""

    ratio: float
    gap: float | None


def is_worth_it(ratio: float) -> bool:
    """Whether bf16 is so much faster that its accuracy matters."""
    return ratio > _FASTER_BY


def without_trial(wanted: Wanted, instructions: Collection[str]) -> Choice | None:
    """What needs no trial. `instructions` are the CPU's (see machine.py)."""
    if wanted != "f32" and not _able(instructions):  # OpenVINO computes in f32 then, whatever it is told
        return Choice("f32", "this CPU has no bf16 arithmetic")
    return None if wanted == "auto" else Choice(wanted, "as the settings say")


def after(trial: Trial, instructions: Collection[str]) -> Choice:
    """What a trial tells."""
    said = f"this CPU has {' and '.join(_able(instructions))}, and bf16 is {trial.ratio:.1f} times as fast"
    if trial.gap is None:
        return Choice("f32", said)
    if trial.gap > LARGEST_GAP:
        return Choice("f32", f"{said}, but it swaps documents whose scores differ by {trial.gap:.2g}")
    return Choice("bf16", f"{said} and keeps the order")


def largest_swap(exact: Sequence[float], rough: Sequence[float], normalization: Normalization) -> float:
    """The largest difference of two documents of one query that change places: of their scores, or of their
    raw values where scores are saturated. `exact` and `rough` are raw values; 0 where none change."""
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


def _able(instructions: Collection[str]) -> list[str]:
    return sorted(_BF16 & set(instructions))
