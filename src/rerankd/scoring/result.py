"""(pure) Build the rows, errors and warnings of a response from raw scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rerankd.content import text_of
from rerankd.domain import RerankRequest
from rerankd.normalization import Normalization
from rerankd.rerank_result import DocumentError, ScoredDocument
from rerankd.scoring import deduplicate, normalize, stages
from rerankd.scoring.deduplicate import UniqueTexts
from rerankd.scoring.stages import StageScores


def ranked(request: RerankRequest, scores: Sequence[StageScores]) -> tuple[ScoredDocument, ...]:
    """The rows of the response, for the raw scores of each stage; a model alone is one stage. Documents below
    `score_threshold`, by the score of the last stage, and after the first `top_n` are left out."""
    order = stages.order(scores)
    if request.score_threshold is not None:
        last = scores[-1]
        normalized = normalize.shown(last.raw, last.normalization, raw=False)
        order = [index for index in order if normalized[index] >= request.score_threshold]
    shown = stages.shown(scores, raw=request.raw_scores)
    return tuple(
        ScoredDocument(
            index, shown[index], text_of(request.documents[index]) if request.return_documents else None
        )
        for index in order[: request.top_n or None]
    )


@dataclass(frozen=True, slots=True)
class Scored:
    """The outcome of scoring a request: the raw score of each document, None if it has none. `errors`,
    `partly` (documents scored without some of their chunks), `truncated` and `unscored` (left out because of
    a budget) are by document index. `document_budget` is the number of tokens read of a document,
    `query_tokens` the length to which the query was truncated, `overlap` the number of tokens that chunks
    share, if that is less than requested. `normalization` is that of this query, None if nothing was scored.
    `has_no_chunks`: chunks were requested of a model that reads none.

    `tokens` were read by the engine. `cached_tokens` belong to the `cached` texts whose score was known, and
    to documents that repeat a text.
    """

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
    has_no_chunks: bool = False
    tokens: int = 0
    cached_tokens: int = 0
    cached: int = 0
    engine_s: float = 0.0
    normalization: Normalization | None = None

    @property
    def document_errors(self) -> tuple[DocumentError, ...]:
        return tuple(DocumentError(at, reason) for at, reason in sorted(self.errors.items()))

    def warnings(self, *, is_later_stage: bool = False) -> tuple[str, ...]:
        """Warnings for the caller, as sentences. `is_later_stage`: documents without a score have one of an
        earlier stage of the cascade."""
        place = "ranked by the stage before" if is_later_stage else "ranked last"
        found = []
        if self.unused_instruction:
            found.append("This model takes no instruction. The instruction in the request was ignored.")
        if self.query_tokens is not None:
            found.append(f"The query was truncated to {_tokens(self.query_tokens)}.")
        if self.overlap is not None:
            found.append(
                f"Chunks overlap by {self.overlap} tokens, the maximum (half a chunk), which is less than "
                "the overlap_tokens of the request."
            )
        if self.truncated and self.has_no_chunks:
            found.append(
                "This model reads all documents of a request together, and none in chunks: "
                "max_chunks_per_doc was ignored."
            )
        if self.truncated:
            found.append(
                f"Truncated to the limit of {_tokens(self.document_budget)}: "
                f"{deduplicate.document_list(self.truncated)}."
            )
        if self.texts.blank:
            found.append(f"Blank and ranked last: {deduplicate.document_list(self.texts.blank)}.")
        left_out = {*self.texts.unscored}
        for documents, why in (
            ([at for at in self.unscored if at in left_out], "max_scored_documents was reached"),
            ([at for at in self.unscored if at not in left_out], "the time budget was exhausted"),
        ):
            if documents:
                found.append(
                    f"Not scored and {place}{', in the order sent' * (not is_later_stage)}: "
                    f"{deduplicate.document_list(documents)}; {why}."
                )
        by_reason: dict[str, list[int]] = {}
        for at, reason in sorted(self.errors.items()):
            by_reason.setdefault(reason, []).append(at)
        for reason, indexes in by_reason.items():
            found.append(f"Not scored and {place}: {deduplicate.document_list(indexes)}. Reason: {reason}.")
        if self.partly:
            found.append(
                "Some chunks could not be scored, so the score is that of the others: "
                f"{deduplicate.document_list(self.partly)}."
            )
        return tuple(found)


def _tokens(count: int) -> str:
    return f"{count} token{'s' * (count != 1)}"
