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

from rerankd import scores
from rerankd.domain import Transform

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
# The score contract: the same pair has the same score within this, wherever it stands.
TOLERANCE = 1e-3
# Quantised weights move a score by a few thousandths more (0.003 seen, between a prompt read whole and one
# whose prefix was kept), which no ranking minds; a head that is not there moves it by far more.
BROKEN = 0.02


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a model; `fatal` says that its scores can't be trusted."""

    text: str
    fatal: bool


def judge(answered: Sequence[Sequence[float | None]], transform: Transform) -> list[Finding]:
    """What the raw values of the arrangements (one run for each, in their order) say of a model. None is a
    pair that could not be scored."""
    runs = [[math.nan if value is None else value for value in run] for run in answered]
    flat = [value for run in runs for value in run]
    if not all(map(math.isfinite, flat)):
        return [Finding("it answers values that are not numbers", fatal=True)]
    by_text = [dict(zip(order, run, strict=True)) for order, run in zip(ARRANGEMENTS, runs, strict=True)]
    first = [by_text[0][at] for at in range(len(TEXTS))]
    found: list[Finding] = []
    if max(first) - min(first) <= 1e-6 * max(1.0, abs(first[0])):
        found.append(Finding(f"it answers the same value ({first[0]:.3g}) for every document", fatal=True))
    moved = max(
        abs(scores.transform(value, transform) - scores.transform(first[at], transform))
        for run in by_text[1:]
        for at, value in run.items()
    )
    if moved > TOLERANCE:
        found.append(
            Finding(
                f"a document's score depends on its place in the request (by {moved:.2g})",
                fatal=moved > BROKEN,
            )
        )
    if not any(finding.fatal for finding in found) and min(first[: len(RELEVANT)]) <= max(
        first[len(RELEVANT) :]
    ):
        found.append(
            Finding("it does not put what answers a simple English question above what does not", fatal=False)
        )
    return found
