"""(pure) The check at load: what a model must do right on a few pairs before anyone gets a score of it.

A file can load and still score wrong: a head that is missing answers 1e-20 for everything, or a number that
depends on the place in the batch; a wrong tokenizer answers the same for all. So the same pairs are scored in
three arrangements, and the values must be finite, not all equal, and depend on the pair alone. Whether the
relevant ones come first is only worth a warning: a model for another language may well not know.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from rerankd.domain import Normalization, Refusal
from rerankd.scoring import normalize

QUERY = "What is a panda?"
RELEVANT = ("The giant panda is a bear native to China that eats bamboo.", "A panda is a kind of bear.")
IRRELEVANT = ("The train to Lyon leaves at nine.", "hi", "Interest rates rose again in March.")
TEXTS = RELEVANT + IRRELEVANT
# The arrangements, as indices into TEXTS: in order, reversed, and one alone.
ARRANGEMENTS: tuple[tuple[int, ...], ...] = (
    tuple(range(len(TEXTS))),
    tuple(reversed(range(len(TEXTS)))),
    (0,),
)
# A value that depends on the block that it was scored in can't be compared with itself.
OF_BLOCKS = ARRANGEMENTS[:1]
# The score contract: the same pair has the same score within this, wherever it stands.
TOLERANCE = 1e-3
# Quantised weights move a score by a few thousandths more (0.003 seen, between a prompt read whole and one
# whose prefix was kept), which no ranking minds; a head that is not there moves it by far more.
BROKEN = 0.02


# How far the scores of two engines may be apart, by the bits that the weights keep: each rounds the
# arithmetic around quantised weights in its own way, and llama.cpp's GELU of `bert` is the tanh form.
_APART_EXACT, _APART_8_BIT, _APART_LESS = 0.02, 0.05, 0.1
# From here on the two have nothing in common, and the file is not served without --force.
DISAGREE = 0.5
_FORCE = "to serve it all the same, with a warning in every answer, use --force"
OTHER_FILE = f"the file may be damaged or converted wrong: try another file of the same model; {_FORCE}"
OTHER_ENGINE = (
    "the file may be damaged, or one of the engines does not know this model: try another file, or --engine; "
    + _FORCE
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two engines' scores of the same pairs: how far they are apart at most, how far they may be, and the
    share of pairs of documents that they order in opposite ways."""

    apart: float
    tolerance: float
    disagreement: float

    @property
    def passed(self) -> bool:
        return self.apart <= self.tolerance

    @property
    def is_fatal(self) -> bool:
        """Whether no trust is left: scores half the scale apart, or the order rather reversed than kept."""
        return not self.passed and (self.apart > DISAGREE or self.disagreement > DISAGREE)


def compare(
    values: Sequence[float | None],
    other: Sequence[float | None],
    normalization: Normalization,
    quantisation: str,
) -> Comparison:
    """Compare two engines' raw values of TEXTS. `quantisation` is the file's, such as F16 or Q4_K."""
    both = [
        (one, two)
        for one, two in zip(values, other, strict=True)
        if one is not None and two is not None and math.isfinite(one) and math.isfinite(two)
    ]
    if len(both) < len(values):
        return Comparison(1.0, tolerance(quantisation), 1.0)
    apart = max(
        abs(normalize.score(one, normalization) - normalize.score(two, normalization)) for one, two in both
    )
    pairs = list(combinations(both, 2))
    opposite = sum((a - b) * (c - d) < 0 for (a, c), (b, d) in pairs)
    return Comparison(apart, tolerance(quantisation), opposite / len(pairs))


def tolerance(quantisation: str) -> float:
    """How far the scores of two engines may be apart."""
    if quantisation in ("F32", "F16", "BF16"):
        return _APART_EXACT
    return _APART_8_BIT if quantisation.startswith("Q8") else _APART_LESS


def check(
    answered: Sequence[Sequence[float | None]], normalization: Normalization
) -> tuple[Refusal | None, tuple[str, ...]]:
    """Why a model's scores can't be trusted (None where they can), and what is only worth a warning, by the
    raw values of the arrangements: one run for each, in their order, of which the first may be all there is.
    None is a pair that could not be scored."""
    runs = [[math.nan if value is None else value for value in run] for run in answered]
    if not all(math.isfinite(value) for run in runs for value in run):
        return Refusal("it answers values that are not numbers", OTHER_FILE), ()
    orders = ARRANGEMENTS[: len(runs)]
    by_text = [dict(zip(order, run, strict=True)) for order, run in zip(orders, runs, strict=True)]
    first = [by_text[0][at] for at in range(len(TEXTS))]
    moved = max(
        abs(normalize.score(value, normalization) - normalize.score(first[at], normalization))
        for run in by_text
        for at, value in run.items()
    )
    depends = f"a document's score depends on its place in the request (by {moved:.2g})"
    fatal = [depends] if moved > BROKEN else []
    if max(first) - min(first) <= 1e-6 * max(1.0, abs(first[0])):
        fatal.insert(0, f"it answers the same value ({first[0]:.3g}) for every document")
    doubts = [depends] if TOLERANCE < moved <= BROKEN else []
    if not fatal and min(first[: len(RELEVANT)]) <= max(first[len(RELEVANT) :]):
        doubts.append("it does not put what answers a simple English question above what does not")
    return Refusal("; ".join(fatal), OTHER_FILE) if fatal else None, tuple(doubts)
