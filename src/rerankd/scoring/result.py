"""(pure) Raw values of documents -> the rows, errors and warnings of an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rerankd.domain import DocumentError, Normalization, RerankRequest, ScoredDocument
from rerankd.scoring import deduplicate, normalize
from rerankd.scoring.deduplicate import UniqueTexts


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
    """What became of a request's documents: the raw value of each, None where it has none, and why. `errors`
    and `partly` (documents that were scored without a part of theirs) are by index, as are `cut` and
    `unscored`, those that the budget left out. `room` is what a document may have, in tokens, `query_tokens`
    what the query was truncated to, `overlap` how many tokens chunks share where more were asked for.

    `tokens` were read, `cached_tokens` are of the `cached` texts that were known and of those that the
    request repeats."""

    texts: UniqueTexts
    raw: Sequence[float | None]
    errors: Mapping[int, str]
    partly: Sequence[int] = ()
    truncated: tuple[int, ...] = ()
    unscored: tuple[int, ...] = ()
    document_budget: int = 0
    query_tokens: int | None = None
    overlap: int | None = None
    unused_instruction: bool = False
    tokens: int = 0
    cached_tokens: int = 0
    cached: int = 0
    engine_s: float = 0.0

    @property
    def document_errors(self) -> tuple[DocumentError, ...]:
        return tuple(DocumentError(at, reason) for at, reason in sorted(self.errors.items()))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should know of it, in words."""
        found = []
        if self.unused_instruction:
            found.append("This model takes no instruction: the one sent was not used.")
        if self.query_tokens is not None:
            found.append(f"The query was truncated to {_tokens(self.query_tokens)}.")
        if self.overlap is not None:
            found.append(
                f"Chunks share {self.overlap} tokens, half of what there is room for, and not the "
                "overlap_tokens of the request."
            )
        if self.truncated:
            found.append(
                f"Too long to be read whole, with {_tokens(self.document_budget)} for a text: "
                f"{deduplicate.document_list(self.truncated)}."
            )
        if self.texts.blank:
            found.append(f"Blank, ranked last: {deduplicate.document_list(self.texts.blank)}.")
        left_out = {*self.texts.unscored}
        for documents, why in (
            ([at for at in self.unscored if at in left_out], "max_scored_documents asks for no more"),
            ([at for at in self.unscored if at not in left_out], "the time budget was over"),
        ):
            if documents:
                found.append(
                    f"Not scored, ranked last in the order sent: {deduplicate.document_list(documents)}; {why}."
                )
        by_reason: dict[str, list[int]] = {}
        for at, reason in sorted(self.errors.items()):
            by_reason.setdefault(reason, []).append(at)
        for reason, indexes in by_reason.items():
            found.append(
                f"Not scored and ranked last: {deduplicate.document_list(indexes)}. Reason: {reason}."
            )
        if self.partly:
            found.append(
                f"Scored without the parts that could not be scored: {deduplicate.document_list(self.partly)}."
            )
        return tuple(found)


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"
