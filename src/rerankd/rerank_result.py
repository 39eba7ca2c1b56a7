"""The result of a rerank request: documents with their scores, what was left out, and why."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScoredDocument:
    """A document's index in the request, its score, and its text if the request has `return_documents`."""

    index: int
    score: float
    text: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentError:
    """A document that could not be scored: its index in the request, and the reason as a clause."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class StageResult:
    """What one stage of a cascade did: its model, how many documents reached it, and how many of them got a
    score. `skipped` documents were left out by the stage's `margin`. `error` says why the stage scored
    nothing; tokens, cached and times are as in RerankResult."""

    model: str
    documents: int
    scored: int
    skipped: int = 0
    tokens: int = 0
    cached: int = 0
    queue_s: float = 0.0
    engine_s: float = 0.0
    total_s: float = 0.0
    error: str = ""


@dataclass(frozen=True, slots=True)
class RerankResult:
    """Documents ordered by raw score, best first; documents with equal raw scores keep the request's order.

    `unscored`, `blank` and `errors` name, by index, the documents without a raw score: omitted because of the
    budget, blank, or failed. They are ranked last, in the request's order, with the lowest score possible
    (see normalize.shown). `truncated` names the truncated documents.

    `tokens` is the number of tokens that the engine read. `cached` is the number of distinct texts whose
    score came from the cache; `cached_tokens` counts the tokens of these, and of the request's duplicates.
    `normalization` is the name of the normalization, or `raw` for raw scores, and `divisor` what it divides
    raw scores by. `warnings` are sentences for the client, for example which documents were truncated. Times
    are in seconds: waiting in the queue, in the engine, and from start to end.

    `stages` is empty unless a cascade answered. The first `stages[-1].scored` documents of the whole order
    then have the scores of the last stage; the fields above hold for all stages together, but `unscored`,
    `blank` and `errors` name documents that no stage has scored.
    """

    model: str
    results: tuple[ScoredDocument, ...]
    tokens: int
    normalization: str
    warnings: tuple[str, ...] = ()
    truncated: tuple[int, ...] = ()
    blank: tuple[int, ...] = ()
    errors: tuple[DocumentError, ...] = ()
    unscored: tuple[int, ...] = ()
    cached: int = 0
    cached_tokens: int = 0
    queue_s: float = 0.0
    engine_s: float = 0.0
    total_s: float = 0.0
    divisor: int = 1
    stages: tuple[StageResult, ...] = ()

    @property
    def requested_tokens(self) -> int:
        """Tokens of the whole request, whether the engine read them or their score was known."""
        return self.tokens + self.cached_tokens
