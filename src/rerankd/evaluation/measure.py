"""(pure) How good rankings are against judgements, and whether one is really better than another.

The measures are those of ir-measures, which are trec_eval's: nDCG with the grade itself as the gain and
log2(rank + 1) as the discount; RR, the reciprocal rank of the first relevant document, whose mean is MRR; R,
recall, the share of the relevant documents that is found. Relevant is a grade of 1 or more.

The test is the paired randomisation test (Smucker, Allan, Carterette: A comparison of statistical
significance tests for information retrieval evaluation, 2007): if the two rankings of a query were as good as
each other, which of them is called "after" would be chance. So each query's pair is swapped or not at random,
many times, and p is the share of times that the difference of the means is at least as large as the measured
one. It assumes nothing about how the values are spread, which a t-test does, and uses their size, which a
sign test does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from rerankd.errors import ConfigError
from rerankd.evaluation.collection import Ranking

MEASURES = ("nDCG@10", "RR@10", "R@10")
_RESAMPLES = 9999

Judgements = Mapping[str, Mapping[str, int]]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One measure of two rankings: of each query, the means, and the two-sided p of their difference."""

    measure: str
    before: Mapping[str, float]
    after: Mapping[str, float]
    p: float

    @property
    def mean_before(self) -> float:
        return fmean(self.before.values())

    @property
    def mean_after(self) -> float:
        return fmean(self.after.values())

    def changes(self) -> list[tuple[float, str]]:
        """How much each query gained, the greatest loss first; those that did not change are left out."""
        gains = [(self.after[query] - self.before[query], query) for query in self.before]
        return sorted(gain for gain in gains if abs(gain[0]) > 1e-9)


def parse(names: Sequence[str]) -> list[Any]:
    """Measures by the names that ir-measures gives them. Raises ConfigError."""
    import ir_measures

    parsed = []
    for name in names:
        try:
            parsed.append(ir_measures.parse_measure(name))
        except (NameError, SyntaxError, ValueError, TypeError, KeyError) as error:
            raise ConfigError(
                f"{name!r} is not a measure of ir-measures, such as nDCG@10, RR@10, R@100 or AP@100: {error}."
            ) from None
    return parsed


def of_queries(judgements: Judgements, ranking: Ranking, measure: Any) -> dict[str, float]:
    """The measure of each judged query; 0 where the ranking has no document for it."""
    # By place and not by score: trec_eval would put equal scores in an order of its own.
    run = {
        query: {document: float(len(documents) - at) for at, document in enumerate(documents)}
        for query, documents in ranking.items()
        if documents
    }
    values = dict.fromkeys(judgements, 0.0)
    if run:
        for found in measure.iter_calc({query: dict(of) for query, of in judgements.items()}, run):
            if found.query_id in values:
                values[found.query_id] = float(found.value)
    return values


def compare(
    judgements: Judgements, before: Ranking, after: Ranking, measures: Sequence[str], seed: int
) -> list[Comparison]:
    """Each measure of both rankings, in the order of `measures`. Raises ConfigError for an unknown one."""
    compared = []
    for measure in parse(measures):
        of_before = of_queries(judgements, before, measure)
        of_after = of_queries(judgements, after, measure)
        p = randomisation_p(list(of_before.values()), list(of_after.values()), seed)
        compared.append(Comparison(str(measure), of_before, of_after, p))
    return compared


def randomisation_p(before: Sequence[float], after: Sequence[float], seed: int) -> float:
    """The two-sided p of the paired randomisation test; 1 where nothing differs. The same for a seed."""
    from scipy.stats import permutation_test

    if len(before) < 2 or list(before) == list(after):
        return 1.0
    found = permutation_test(
        (after, before),
        lambda a, b, axis: (a - b).mean(axis=axis),
        permutation_type="samples",
        n_resamples=_RESAMPLES,
        vectorized=True,
        rng=seed,
    )
    return float(found.pvalue)
