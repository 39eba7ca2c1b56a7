"""(pure) From the times of requests to figures: medians, percentiles, and ratios of what ran side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from rerankd.benchmark.load import Case


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a case at one server: seconds of each request, and from the first begin to the last end.

    `tokens` is what the server says it read, None where it does not say.
    """

    seconds: tuple[float, ...]
    wall_s: float
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """The rounds of one case at one server."""

    target: str
    case: Case
    rounds: list[Round] = field(default_factory=list)

    @property
    def pairs_per_s(self) -> float:
        """The median over the rounds."""
        return median(self.case.pairs / each.wall_s for each in self.rounds)

    def latency_s(self, share: float) -> float:
        """The time within which that share of all requests was answered."""
        return percentile([one for each in self.rounds for one in each.seconds], share)

    @property
    def tokens_per_pair(self) -> float | None:
        told = [each.tokens for each in self.rounds if each.tokens is not None]
        return sum(told) / (len(told) * self.case.pairs) if told else None


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as many pairs a second one server scores as another, round by round: the median, the
    least and the most."""

    median: float
    least: float
    most: float


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least that share of the values does not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def ratio(one: Series, other: Series) -> Ratio | None:
    """`one` over `other`, by the rounds that both have; None where there are none.

    Rounds are compared and not medians, since what else the machine does falls on both of a round alike.
    """
    each = [theirs.wall_s / ours.wall_s for ours, theirs in zip(one.rounds, other.rounds, strict=False)]
    return Ratio(median(each), min(each), max(each)) if each else None
