"""(pure) The two fits from a raw score to the probability that a document is relevant: Platt and isotonic.

Both are fitted to Platt's smoothed targets: of r relevant and n irrelevant pairs, (r + 1) / (r + 2) and
1 / (n + 2) instead of 1 and 0. So neither fit ever answers 0 or 1, and Platt's slope stays finite where a raw
score separates the two kinds. Source: Platt, Probabilistic outputs for support vector machines, 1999.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from rerankd.normalization import LARGEST, MOST_KNOTS, Normalization

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def platt(raw: Floats, relevant: Bools) -> Normalization | None:
    """The sigmoid with the least log loss (Lin, Lin, Weng: A note on Platt's probabilistic outputs, 2007,
    which gives the form of the loss that never overflows); None if the loss is not less for any slope above
    0."""
    from scipy.optimize import minimize
    from scipy.special import expit

    targets = _targets(relevant)
    middle, spread = float(raw.mean()), float(raw.std())
    if not spread > 0:
        return None
    scaled = (raw - middle) / spread

    def loss(parameters: Floats) -> tuple[float, Floats]:
        slope, shift = parameters
        logits = slope * scaled + shift
        wrong = expit(logits) - targets
        value = float((np.logaddexp(0, logits) - targets * logits).sum())
        return value, np.array([wrong @ scaled, wrong.sum()])

    share = float(targets.mean())
    start = np.array([0.0, np.log(share / (1 - share))])
    slope, shift = (float(value) for value in minimize(loss, start, jac=True, method="BFGS").x)
    sigma = spread / slope if slope else np.inf
    mean = middle - shift * sigma
    if not (1 / LARGEST <= sigma <= LARGEST and abs(mean) <= LARGEST):
        return None
    return Normalization("sigmoid", logit_mean=mean, logit_sigma=sigma)


def isotonic(raw: Floats, relevant: Bools) -> Normalization:
    """The ascending function with the least squared error: pool adjacent violators, by scipy. Each pool
    becomes one knot at its mean raw score, so that the function ascends between pools instead of having
    steps (Oron, Flournoy: Centered isotonic regression, 2017). Above MOST_KNOTS, the neighbours that differ
    least are merged."""
    from scipy.optimize import isotonic_regression

    order = np.argsort(raw, kind="stable")
    values, first, counts = np.unique(raw[order], return_index=True, return_counts=True)
    means = np.add.reduceat(_targets(relevant)[order], first) / counts
    blocks = isotonic_regression(means, weights=counts.astype(float)).blocks
    pools = [_pool(counts[start:end], values[start:end], means[start:end]) for start, end in pairwise(blocks)]
    while len(pools) > MOST_KNOTS:
        at = min(range(len(pools) - 1), key=lambda left: _cost(pools[left], pools[left + 1]))
        pools[at : at + 2] = [_pool(*(np.array(both) for both in zip(*pools[at : at + 2], strict=True)))]
    # Pools of equal means may differ in the last bit.
    heights = np.maximum.accumulate([mean for _, _, mean in pools]).tolist()
    knots = zip((value for _, value, _ in pools), heights, strict=True)
    return Normalization("isotonic", knots=tuple(knots))


def scores(raw: Floats, how: Normalization) -> Floats:
    """The normalized scores, in the form in which a server computes them."""
    from rerankd.scoring.normalize import score

    return np.array([score(value, how) for value in raw.tolist()])


def _targets(relevant: Bools) -> Floats:
    count = int(relevant.sum())
    return np.where(relevant, (count + 1) / (count + 2), 1 / (len(relevant) - count + 2))


def _pool(counts: Any, values: Any, means: Any) -> tuple[float, float, float]:
    """The pairs of some neighbours, their mean raw score, and their mean target."""
    total = float(counts.sum())
    return total, float(counts @ values) / total, float(counts @ means) / total


def _cost(one: Sequence[float], two: Sequence[float]) -> float:
    """By how much the squared error grows if two pools become one."""
    return one[0] * two[0] / (one[0] + two[0]) * (one[2] - two[2]) ** 2
