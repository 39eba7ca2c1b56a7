"""(pure) The self-test after loading: conditions a model must meet on a few known pairs before it serves
requests.

A model can load and still score wrong: without its classifier weights it returns 1e-20 for every pair, or a
number that depends on the position in the batch; with a wrong tokenizer it returns the same number for every
pair. So the same pairs are scored in three arrangements. The raw scores must be finite, must differ, and must
depend on the pair alone. If the relevant documents are not ranked first, that is only a warning: the model
may be for another language.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from rerankd.domain import Refusal
from rerankd.normalization import Normalization
from rerankd.scoring import normalize

QUERY = "What is a panda?"
RELEVANT = ("The giant panda is a bear native to China that eats bamboo.", "A panda is a kind of bear.")
IRRELEVANT = ("The train to Lyon leaves at nine.", "hi", "Interest rates rose again in March.")
TEXTS = RELEVANT + IRRELEVANT
# The arrangements, as indexes into TEXTS: in order, reversed, and one alone.
ARRANGEMENTS: tuple[tuple[int, ...], ...] = (
    tuple(range(len(TEXTS))),
    tuple(reversed(range(len(TEXTS)))),
    (0,),
)
# For a model whose scores depend on the other documents of a block: arrangements are not comparable.
OF_BLOCKS = ARRANGEMENTS[:1]
# The score contract: a pair has the same score within this tolerance, whatever its position.
TOLERANCE = 1e-3
# Quantised weights move a score by a few thousandths more (0.003 measured, between a prompt read as a whole
# and one with a cached prefix), which does not matter for ranking. Missing classifier weights move it much
# further.
BROKEN = 0.02
# The tolerance between the scores of two engines, by the precision of the weights: each engine rounds the
# arithmetic around quantised weights differently, and llama.cpp uses the tanh form of GELU for `bert`.
_APART_EXACT, _APART_8_BIT, _APART_LESS = 0.02, 0.05, 0.1
# Above this difference the file is not served without --force.
DISAGREE = 0.5
_FORCE = "to serve it anyway, with a warning in each response, use --force"
OTHER_FILE = f"the file may be damaged or converted incorrectly: try another file of the same model; {_FORCE}"
OTHER_ENGINE = (
    "the file may be damaged, or one of the engines may not support this model: try another file, or "
    "--engine; " + _FORCE
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The scores of two engines for the same pairs: the largest difference, the tolerance, and the share of
    pairs of documents that the engines rank in opposite order."""

    apart: float
    tolerance: float
    disagreement: float

    @property
    def passed(self) -> bool:
        return self.apart <= self.tolerance

    @property
    def is_fatal(self) -> bool:
        """Whether the scores must not be served: they differ by more than half the scale, or more pairs of
        documents are in opposite order than in the same order."""
        return not self.passed and (self.apart > DISAGREE or self.disagreement > DISAGREE)


def compare(
    values: Sequence[float | None],
    other: Sequence[float | None],
    normalization: Normalization,
    *quantisations: str,
) -> Comparison:
    """Compare two engines' raw scores of TEXTS. `quantisations` are those of the file, such as F16 or Q4_K,
    and of the engine, if it rounds weights, too."""
    largest = max(map(tolerance, quantisations))
    both = [
        (one, two)
        for one, two in zip(values, other, strict=True)
        if one is not None and two is not None and math.isfinite(one) and math.isfinite(two)
    ]
    if len(both) < len(values):
        return Comparison(1.0, largest, 1.0)
    apart = max(
        abs(normalize.score(one, normalization) - normalize.score(two, normalization)) for one, two in both
    )
    pairs = list(combinations(both, 2))
    opposite = sum((a - b) * (c - d) < 0 for (a, c), (b, d) in pairs)
    return Comparison(apart, largest, opposite / len(pairs))


def tolerance(quantisation: str) -> float:
    """The largest accepted difference between the scores of two engines."""
    if quantisation in ("F32", "F16", "BF16"):
        return _APART_EXACT
    return _APART_8_BIT if quantisation.startswith("Q8") else _APART_LESS


def check(
    answered: Sequence[Sequence[float | None]], normalization: Normalization
) -> tuple[Refusal | None, tuple[str, ...]]:
    """Check the raw scores of the arrangements. Returns a Refusal if the scores can't be trusted, and
    warnings.

    `answered` has one run for each arrangement, in their order, or only the first. None marks a pair that
    could not be scored.
    """
    runs = [[math.nan if value is None else value for value in run] for run in answered]
    if not all(math.isfinite(value) for run in runs for value in run):
        return Refusal("it returns scores that are not finite numbers", OTHER_FILE), ()
    orders = ARRANGEMENTS[: len(runs)]
    by_text = [dict(zip(order, run, strict=True)) for order, run in zip(orders, runs, strict=True)]
    first = [by_text[0][at] for at in range(len(TEXTS))]
    moved = max(
        abs(normalize.score(value, normalization) - normalize.score(first[at], normalization))
        for run in by_text
        for at, value in run.items()
    )
    depends = f"a document's score depends on its position in the request (by {moved:.2g})"
    fatal = [depends] if moved > BROKEN else []
    if max(first) - min(first) <= 1e-6 * max(1.0, abs(first[0])):
        fatal.insert(0, f"it returns the same raw score ({first[0]:.3g}) for every document")
    doubts = [depends] if TOLERANCE < moved <= BROKEN else []
    if not fatal and min(first[: len(RELEVANT)]) <= max(first[len(RELEVANT) :]):
        doubts.append("it does not rank the documents that answer a simple English question first")
    return Refusal("; ".join(fatal), OTHER_FILE) if fatal else None, tuple(doubts)
