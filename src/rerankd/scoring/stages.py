"""(pure) Cascades: which documents go on to the next stage, and the order and scores that result.

The order: a document that a stage has scored ranks above each one that it has not, and those that it has
scored are ordered by its raw scores. So the last stage orders the top, the stage before it the documents
below, and documents without any score are last. Equal raw scores keep the order of the stage before, and in
the first stage that of the request.

The score of a document is that of the last stage that has scored it. Scores of two models are not on one
scale, and many clients sort by score; therefore a document that a stage has not scored never gets more than
the lowest score of the documents that it has.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from rerankd.normalization import Normalization
from rerankd.scoring import normalize


@dataclass(frozen=True, slots=True)
class StageScores:
    """The raw score of each document of the request in one stage, None if the stage has not scored it."""

    raw: Sequence[float | None]
    normalization: Normalization

    @property
    def scored(self) -> int:
        """The number of documents with a score."""
        return sum(value is not None for value in self.raw)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The documents that reach a stage, by index, the best first. `skipped` are the number of documents that
    only the stage's margin left out."""

    documents: tuple[int, ...]
    skipped: int = 0


def order(scores: Sequence[StageScores]) -> list[int]:
    """The indexes of all documents, the best first."""
    found = normalize.rank(scores[0].raw)
    for stage in scores[1:]:
        raw = stage.raw
        # Both sorts are stable.
        found.sort(key=lambda at: raw[at] is None)
        seen = found[: stage.scored]
        seen.sort(key=lambda at: -(raw[at] or 0.0))
        found[: len(seen)] = seen
    return found


def shown(scores: Sequence[StageScores], *, raw: bool) -> list[float]:
    """The number to return for each document: its raw score if `raw`, else its score in [0, 1]."""
    first = scores[0]
    found = normalize.shown(first.raw, first.normalization, raw=raw)
    for stage in scores[1:]:
        own = normalize.shown(stage.raw, stage.normalization, raw=raw)
        seen = [at for at, value in enumerate(stage.raw) if value is not None]
        if seen:
            lowest = min(own[at] for at in seen)
            found = [min(value, lowest) for value in found]
            for at in seen:
                found[at] = own[at]
    return found


def candidates(
    scores: Sequence[StageScores],
    texts: Sequence[Hashable],
    keep: int,
    *,
    top_n: int | None = None,
    margin: float | None = None,
) -> Candidates:
    """The documents that go on to the next stage: the best `keep` distinct texts of the order so far, with
    all their copies, so that equal texts keep equal scores. A document without any score does not go on.

    With `margin` and `top_n`, a document whose raw score in the last stage is lower than that of document
    `top_n` by more than `margin` does not go on either.
    """
    found = [at for at in order(scores) if any(stage.raw[at] is not None for stage in scores)]
    kept = {*list(dict.fromkeys(texts[at] for at in found))[:keep]}
    found = [at for at in found if texts[at] in kept]
    raw = scores[-1].raw
    if margin is None or not top_n or len(found) <= top_n or (at_least := raw[found[top_n - 1]]) is None:
        return Candidates(tuple(found))
    near = [at for at in found if (value := raw[at]) is not None and value >= at_least - margin]
    return Candidates(tuple(near), len(found) - len(near))
