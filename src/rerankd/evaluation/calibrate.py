"""Fit a calibration to judged pairs, and measure it on queries that it was not fitted on.

Folds are made of queries: pairs of one query resemble each other, so folds of pairs would measure what was
already seen. All figures of calibrated scores are of held-out queries; the served calibration is then fitted
to all of them. Isotonic needs more judgements than Platt, so it is chosen only if its log loss on held-out
queries is less by more than one standard error (over queries).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from rerankd.errors import CollectionError
from rerankd.evaluation.calibration_fits import Bools, Floats, isotonic, platt, scores
from rerankd.evaluation.calibration_quality import Quality, losses, quality
from rerankd.evaluation.collection import Collection, Ranking
from rerankd.normalization import Calibration, CalibrationMethod, Normalization
from rerankd.progress import Progress

# Takes a query and documents, and returns the raw score of each, None if it has none.
Ask = Callable[[str, Sequence[str]], Awaitable[Sequence[float | None]]]
FOLDS = 5
LEAST_OF_EACH = 30
LEAST_QUERIES = 10
_MORE = "Judge more of your own search results, or use a larger collection."


@dataclass(frozen=True, slots=True)
class Pairs:
    """Judged pairs: raw scores, divided as the normalization divides them, whether the document is relevant,
    and the query. `left_out` counts pairs without a score: their document is blank, or can't be scored."""

    raw: Floats
    relevant: Bools
    queries: tuple[str, ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Fit:
    """A calibration with its quality on held-out queries. `before` is that of the model's own scores, `both`
    of each method. `held_out` are the probabilities of the chosen method by pair. `base` is the log loss of
    the share of relevant documents as the score of every document."""

    pairs: Pairs
    method: CalibrationMethod
    normalization: Normalization
    before: Quality
    both: Mapping[CalibrationMethod, Quality]
    held_out: Floats
    base: float

    @property
    def after(self) -> Quality:
        return self.both[self.method]

    @property
    def is_better(self) -> bool:
        """Whether calibrated scores have a lower log loss than the model's own."""
        return self.after.log_loss < self.before.log_loss

    def calibration(self, **facts: Any) -> Calibration:
        """The value to store. `facts` are the fields of it that do not follow from the fit."""
        how, before, after = self.normalization, self.before, self.after
        is_platt = self.method == "platt"
        relevant = int(self.pairs.relevant.sum())
        return Calibration(
            **facts,
            queries=len(set(self.pairs.queries)),
            relevant=relevant,
            irrelevant=len(self.pairs.relevant) - relevant,
            method=self.method,
            logit_mean=_short(how.logit_mean) if is_platt else None,
            logit_sigma=_short(how.logit_sigma) if is_platt else None,
            knots=tuple((raw, _short(score)) for raw, score in how.knots),
            log_loss=(_short(before.log_loss), _short(after.log_loss)),
            brier=(_short(before.brier), _short(after.brier)),
            ece=(_short(before.ece), _short(after.ece)),
            reliability=tuple((_short(score), _short(share), count) for score, share, count in after.bins),
        )


def judged(collection: Collection, candidates: Ranking | None) -> dict[str, tuple[str, ...]]:
    """The documents of each query to fit on: those with a judgement. With `candidates`, also the candidates
    without one, as documents that are not relevant."""
    found = {}
    for query, grades in collection.judgements.items():
        more = (one for one in candidates[query] if one not in grades) if candidates is not None else ()
        found[query] = collection.candidates(query, chain(grades, more), len(collection.documents))
    return found


async def score_pairs(
    collection: Collection, documents: Ranking, relevant_grade: int, ask: Ask, progress: Progress
) -> Pairs:
    """Score these documents of each query. A document is relevant from `relevant_grade` on. Raises what `ask`
    raises."""
    rows: list[tuple[float, bool, str]] = []
    left_out = 0
    for at, (query, found) in enumerate(documents.items()):
        progress("scoring the judged pairs", at, len(documents))
        grades = collection.judgements[query]
        values = (
            await ask(collection.queries[query], [collection.documents[one] for one in found])
            if found
            else ()
        )
        for document, raw in zip(found, values, strict=True):
            if raw is None:
                left_out += 1
            else:
                rows.append((raw, grades.get(document, 0) >= relevant_grade, query))
    progress("scoring the judged pairs", len(documents), len(documents))
    raws, relevant, queries = zip(*rows, strict=True) if rows else ((), (), ())
    return Pairs(np.array(raws, np.float64), np.array(relevant, np.bool_), queries, left_out)


def fit(pairs: Pairs, own: Normalization, seed: int = 1) -> Fit:
    """Fit both methods, and choose one. `own` is the model's own normalization, without a divisor. Raises
    CollectionError, with a sentence, if the pairs do not suffice or say nothing about relevance."""
    _check(pairs)
    folds = _folds(pairs, seed)
    held_out: dict[CalibrationMethod, Floats] = {
        "platt": np.empty(len(pairs.raw)),
        "isotonic": np.empty(len(pairs.raw)),
    }
    base = np.empty(len(pairs.raw))
    for fold in range(FOLDS):
        there, rest = folds == fold, folds != fold
        raw, relevant = pairs.raw[rest], pairs.relevant[rest]
        held_out["platt"][there] = scores(pairs.raw[there], _ascending(raw, relevant))
        held_out["isotonic"][there] = scores(pairs.raw[there], isotonic(raw, relevant))
        base[there] = relevant.mean()
    both = {method: quality(found, pairs.relevant) for method, found in held_out.items()}
    method: CalibrationMethod = "isotonic" if _is_better(pairs, held_out) else "platt"
    of_share = float(losses(base, pairs.relevant).mean())
    if both[method].log_loss >= of_share:
        raise CollectionError(
            "The raw scores say nothing about relevance in this collection: on held-out queries, the log "
            f"loss is {both[method].log_loss:.3f} for calibrated scores, and {of_share:.3f} for one score "
            "for all. "
            "Check the judgements, or use another model."
        )
    chosen = isotonic if method == "isotonic" else _ascending
    return Fit(
        pairs,
        method,
        chosen(pairs.raw, pairs.relevant),
        quality(scores(pairs.raw, own), pairs.relevant),
        both,
        held_out[method],
        of_share,
    )


def _check(pairs: Pairs) -> None:
    """Raise CollectionError for pairs that can't be fitted."""
    relevant, queries = int(pairs.relevant.sum()), len(set(pairs.queries))
    irrelevant = len(pairs.relevant) - relevant
    if queries < LEAST_QUERIES:
        raise CollectionError(
            f"A calibration needs judgements for at least {LEAST_QUERIES} queries, since it is checked on "
            f"queries that it was not fitted on; this collection has {queries}. {_MORE}"
        )
    for count, kind in ((relevant, "relevant"), (irrelevant, "not relevant")):
        if count < LEAST_OF_EACH:
            hint = " Unjudged documents do not count, unless --unjudged-irrelevant says so."
            raise CollectionError(
                f"A calibration needs at least {LEAST_OF_EACH} pairs that are judged relevant and "
                f"{LEAST_OF_EACH} that are judged not relevant (grade 0). Only {count} are {kind}."
                f"{hint if kind == 'not relevant' else ''} {_MORE}"
            )
    for is_relevant, kind in ((True, "relevant"), (False, "irrelevant")):
        of_kind = {
            query for query, one in zip(pairs.queries, pairs.relevant, strict=True) if one == is_relevant
        }
        if len(of_kind) < FOLDS:
            raise CollectionError(
                f"All {kind} documents are of {len(of_kind)} queries; a calibration needs them of at least "
                f"{FOLDS}. {_MORE}"
            )
    if np.ptp(pairs.raw) == 0:
        raise CollectionError(
            f"The model gives every pair the same raw score ({pairs.raw[0]:g}), so nothing can be fitted. "
            "Check the model with rerankd inspect --check."
        )


def _folds(pairs: Pairs, seed: int) -> npt.NDArray[np.int64]:
    """The fold of each pair. Queries with documents of one kind only are dealt out first and last, so that
    what is not in a fold always has both kinds."""
    kinds: dict[str, set[bool]] = {}
    for query, relevant in zip(pairs.queries, pairs.relevant.tolist(), strict=True):
        kinds.setdefault(query, set()).add(relevant)
    queries = [*kinds]
    np.random.default_rng(seed).shuffle(queries)
    queries.sort(key=lambda query: (False in kinds[query]) - (True in kinds[query]))
    fold = {query: at % FOLDS for at, query in enumerate(queries)}
    return np.array([fold[query] for query in pairs.queries])


def _ascending(raw: Floats, relevant: Bools) -> Normalization:
    found = platt(raw, relevant)
    if found is None:
        raise CollectionError(
            "A higher raw score does not mean a more relevant document in this collection, so its scores are "
            "no measure of relevance. Check the judgements (0 is not relevant), and the model with rerankd "
            "inspect --check."
        )
    return found


def _is_better(pairs: Pairs, held_out: Mapping[CalibrationMethod, Floats]) -> bool:
    """Whether isotonic has a log loss that is less by more than one standard error over queries."""
    gains = losses(held_out["platt"], pairs.relevant) - losses(held_out["isotonic"], pairs.relevant)
    _, of = np.unique(pairs.queries, return_inverse=True)
    by_query = np.bincount(of, weights=gains)
    return bool(by_query.mean() > by_query.std(ddof=1) / np.sqrt(len(by_query)))


def _short(value: float) -> float:
    """Six significant digits."""
    return float(f"{value:.6g}")
