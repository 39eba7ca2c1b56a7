"""(pure) Statistics of a benchmark: median throughput, latency percentiles, and ratios between servers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from rerankd.benchmark.load import Case


@dataclass(frozen=True, slots=True)
class Round:
    """One round of a case on one server: the latency of each request, and the duration of the whole round.

    `tokens` is the number of tokens that the server reports; None: it reports none.
    """

    seconds: tuple[float, ...]
    wall_s: float
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """The rounds of one case on one server."""

    target: str
    case: Case
    rounds: list[Round] = field(default_factory=list)

    @property
    def pairs_per_s(self) -> float:
        """Throughput: the median over the rounds."""
        return median(self.case.pairs / each.wall_s for each in self.rounds)

    def latency_s(self, share: float) -> float:
        """Latency percentile over all requests; `share` 0.95 is p95."""
        return percentile([one for each in self.rounds for one in each.seconds], share)

    @property
    def tokens_per_pair(self) -> float | None:
        reported = [each.tokens for each in self.rounds if each.tokens is not None]
        return sum(reported) / (len(reported) * self.case.pairs) if reported else None


@dataclass(frozen=True, slots=True)
class Ratio:
    """The throughput of one server divided by another's, per round: median, minimum and maximum."""

    median: float
    least: float
    most: float


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


def ratio(one: Series, other: Series) -> Ratio | None:
    """Return the throughput of `one` divided by that of `other`, over the rounds that both have; None: none.

    Rounds are compared instead of medians because other load on the machine affects both servers of a round
    alike.
    """
    ratios = [theirs.wall_s / ours.wall_s for ours, theirs in zip(one.rounds, other.rounds, strict=False)]
    return Ratio(median(ratios), min(ratios), max(ratios)) if ratios else None
