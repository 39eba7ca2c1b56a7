"""(pure) Ranking measures (nDCG, RR, recall) against judgements, and a significance test of their difference.

The measures are those of ir-measures, which are trec_eval's: nDCG with the grade as gain and log2(rank + 1)
as discount; RR, the reciprocal rank of the first relevant document, whose mean is MRR; R, recall, the share
of the relevant documents that is found. A document is relevant if its grade is 1 or more.

The test is the paired randomisation test (Smucker, Allan, Carterette: A comparison of statistical
significance tests for information retrieval evaluation, 2007). If both rankings of a query were equally good,
it would be chance which of them is "after". The test therefore swaps each query's pair at random, many times;
p is the share of trials in which the difference of the means is at least as large as the measured one. Unlike
a t-test it makes no assumption about the distribution of the values, and unlike a sign test it uses their
size.
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
    """One measure of two rankings, by query, with the two-sided p-value of the difference of the means."""

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
        """Return the gain of each query that changed, the greatest loss first."""
        gains = [(self.after[query] - self.before[query], query) for query in self.before]
        return sorted(gain for gain in gains if abs(gain[0]) > 1e-9)


def parse(names: Sequence[str]) -> list[Any]:
    """Parse measures by their names in ir-measures. Raises ConfigError."""
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
    """Return the measure of each judged query; 0 if the ranking has no documents for it."""
    # Ranks replace the scores, since trec_eval would reorder documents with equal scores.
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
    """Compare two rankings by each of `measures`, in this order. Raises ConfigError for an unknown
    measure."""
    compared = []
    for measure in parse(measures):
        of_before = of_queries(judgements, before, measure)
        of_after = of_queries(judgements, after, measure)
        p = randomisation_p(list(of_before.values()), list(of_after.values()), seed)
        compared.append(Comparison(str(measure), of_before, of_after, p))
    return compared


def randomisation_p(before: Sequence[float], after: Sequence[float], seed: int) -> float:
    """Return the two-sided p-value of the paired randomisation test; 1 if nothing differs. Reproducible by
    seed."""
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
