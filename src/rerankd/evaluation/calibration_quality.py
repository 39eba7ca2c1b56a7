"""(pure) How good probabilities are: log loss, Brier score, calibration error; and a threshold for a
precision.

Log loss is the mean of -log of the probability given to what was true; a probability of 0 or 1 counts as
1e-6 from it. The Brier score is the mean squared error. The expected calibration error (ECE) is the mean
distance of score and share of relevant documents in ten bins of equal width, weighted by their documents
(Naeini, Cooper, Hauskrecht: Obtaining well calibrated probabilities using Bayesian binning, 2015).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from rerankd.evaluation.calibration_fits import Bools, Floats

BINS = 10
_LEAST_PROBABILITY = 1e-6
# Two-sided 95 % of the normal distribution.
_Z = 1.959964
FEW = 30
# Thresholds have this many decimals.
_DECIMALS = 4

# A bin of scores: their mean, the share of relevant documents, and the number of documents.
Bin = tuple[float, float, int]


@dataclass(frozen=True, slots=True)
class Quality:
    """How good the scores are as probabilities. `bins` has only bins with documents, in ascending order."""

    log_loss: float
    brier: float
    ece: float
    bins: tuple[Bin, ...]


@dataclass(frozen=True, slots=True)
class Threshold:
    """The lowest score at which the share of relevant documents among those not below it, their `precision`,
    reaches the wanted one. `low` and `high` are its 95 % interval (Wilson), as if all pairs were independent.
    `recall` is the share of all relevant documents that is not below. `documents` are those not below."""

    score: float
    precision: float
    low: float
    high: float
    recall: float
    documents: int

    @property
    def is_from_few(self) -> bool:
        """Whether too few documents decided it."""
        return self.documents < FEW


def losses(probabilities: Floats, relevant: Bools) -> Floats:
    """The log loss of each document."""
    kept = np.clip(probabilities, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return -np.log(np.where(relevant, kept, 1 - kept))


def quality(probabilities: Floats, relevant: Bools) -> Quality:
    """Measure probabilities against judgements."""
    places = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    bins = []
    for place in np.unique(places):
        there = places == place
        share = float(relevant[there].mean())
        bins.append((float(probabilities[there].mean()), share, int(there.sum())))
    return Quality(
        float(losses(probabilities, relevant).mean()),
        float(((probabilities - relevant) ** 2).mean()),
        sum(abs(score - share) * count for score, share, count in bins) / len(relevant),
        tuple(bins),
    )


def threshold(probabilities: Floats, relevant: Bools, precision: float) -> Threshold | None:
    """The threshold for a precision, with the highest recall; None if no score reaches the precision."""
    scale = 10**_DECIMALS
    found = None
    for score in np.unique(np.floor(probabilities * scale) / scale)[::-1]:
        there = probabilities >= score
        hits, count = int(relevant[there].sum()), int(there.sum())
        if hits / count >= precision:
            low, high = _wilson(hits, count)
            recall = hits / int(relevant.sum())
            found = Threshold(round(float(score), _DECIMALS), hits / count, low, high, recall, count)
    return found


def _wilson(hits: int, count: int) -> tuple[float, float]:
    share, square = hits / count, _Z**2 / count
    middle = share + square / 2
    half = _Z * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return max((middle - half) / (1 + square), 0.0), min((middle + half) / (1 + square), 1.0)
