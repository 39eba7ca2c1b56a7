"""(pure) Raw values of texts -> the rows, errors and warnings of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rerankd.domain import DocumentError, Normalization, RerankRequest, ScoredDocument
from rerankd.scoring import normalize, plan
from rerankd.scoring.inputs import Fitted


def ranked(
    request: RerankRequest, values: Sequence[float | None], how: Normalization
) -> tuple[ScoredDocument, ...]:
    """The answer's rows for one raw value a document (None: it has none): in the order of these, of which
    `score_threshold` and then `top_n` leave the first ones."""
    order = normalize.rank(values)
    if request.score_threshold is not None:
        normalized = normalize.shown(values, how, raw=False)
        order = [index for index in order if normalized[index] >= request.score_threshold]
    shown = normalize.shown(values, how, raw=request.raw_scores)
    return tuple(
        ScoredDocument(index, shown[index], request.documents[index] if request.return_documents else None)
        for index in order[: request.top_n or None]
    )


@dataclass(frozen=True, slots=True)
class Scored:
    """The raw value of each text of a plan, None where `text_errors` says why it has none; and what it took:
    `cached` of them were known."""

    fitted: Fitted
    raw: Sequence[float | None]
    text_errors: Mapping[int, str]
    tokens: int
    cached_tokens: int
    cached: int
    engine_s: float

    @property
    def errors(self) -> tuple[DocumentError, ...]:
        """The documents of which no text could be scored."""
        if not self.text_errors:  # the usual case: no document is looked at
            return ()
        return tuple(
            DocumentError(at, self.text_errors[parts[0]])
            for at, parts in enumerate(self.fitted.plan.parts)
            if parts and all(part in self.text_errors for part in parts)
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should know of texts that could not be scored."""
        if not self.text_errors:
            return ()
        found = []
        by_reason: dict[str, list[int]] = {}
        for error in self.errors:
            by_reason.setdefault(error.reason, []).append(error.index)
        for reason, indexes in by_reason.items():
            found.append(f"Not scored and ranked last: {plan.named(indexes)}. Reason: {reason}.")
        whole = {error.index for error in self.errors}
        partly = [
            at
            for at, parts in enumerate(self.fitted.plan.parts)
            if at not in whole and not self.text_errors.keys().isdisjoint(parts)
        ]
        if partly:
            found.append(f"Scored without the parts that could not be scored: {plan.named(partly)}.")
        return tuple(found)
