"""The dialect of Jina and Cohere (v1 and v2): `documents` in, `results` out. Pure.

The response has the fields of all their SDKs. SDKs ignore unknown fields but fail without their own: `meta`
(AI SDK), `usage` and `model` (Haystack, Infinity), `object` "rerank" or none (Infinity). Errors likewise.
"""

from __future__ import annotations

import time
from typing import Any, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from rerankd.api.dialects.dialect import Dialect, Question, Stage, stages
from rerankd.api.dialects.lenient import Texts
from rerankd.api.dialects.option_rules import Rules
from rerankd.errors import RerankdError
from rerankd.rerank_result import RerankResult


class RerankBody(Question):
    """The request body without the options."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "model": "builtin:e5",
        "query": "什么是熊猫？",
        "top_n": 3,
        "documents": ["hi", "它是一种熊", "大熊猫是一种原产于中国的熊科动物。"],
    }

    documents: Texts = Field(
        description='The documents to score: strings, or objects with a "text" or with other fields.'
    )


class Document(TypedDict):
    text: str


class Row(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[Document]


class Cached(TypedDict):
    cached_tokens: int


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: NotRequired[Cached]


class DocumentError(TypedDict):
    index: int
    reason: str


class Meta(TypedDict):
    api_version: dict[str, str]
    billed_units: dict[str, int]
    tokens: dict[str, int]
    normalization: str
    transform: str  # the name of `normalization` in 0.1
    divisor: NotRequired[int]  # of raw scores, before they are normalized
    cached: NotRequired[int]
    cut: NotRequired[list[int]]
    blank: NotRequired[list[int]]
    errors: NotRequired[list[DocumentError]]
    unscored: NotRequired[list[int]]
    stages: NotRequired[list[Stage]]
    warnings: NotRequired[list[str]]


class Answer(TypedDict):
    id: str
    object: Literal["rerank"]
    created: int
    model: str
    results: list[Row]
    usage: Usage
    meta: Meta


def usage(tokens: int, cached_tokens: int) -> Usage:
    """Return the usage: `tokens` of the whole request, of which `cached_tokens` came from the cache."""
    found: Usage = {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    if cached_tokens:
        found["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return found


def rows(result: RerankResult) -> list[Row]:
    """Return the rows. A row has the document only if the request asked for it; it is never null."""
    found: list[Row] = []
    for scored in result.results:
        row: Row = {"index": scored.index, "relevance_score": scored.score}
        if scored.text is not None:
            row["document"] = {"text": scored.text}
        found.append(row)
    return found


def render(result: RerankResult, request_id: str) -> Answer:
    """Return the response JSON."""
    meta: Meta = {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": result.requested_tokens, "output_tokens": 0},
        "normalization": result.normalization,
        "transform": result.normalization,
    }
    if result.divisor != 1:
        meta["divisor"] = result.divisor
    if result.cached:
        meta["cached"] = result.cached
    if result.truncated:
        meta["cut"] = list(result.truncated)
    if result.blank:
        meta["blank"] = list(result.blank)
    if result.errors:
        meta["errors"] = [{"index": error.index, "reason": error.reason} for error in result.errors]
    if result.unscored:
        meta["unscored"] = list(result.unscored)
    if result.stages:
        meta["stages"] = stages(result)
    if result.warnings:
        meta["warnings"] = list(result.warnings)
    return {
        "id": request_id,
        "object": "rerank",
        "created": int(time.time()),
        "model": result.model,
        "results": rows(result),
        "usage": usage(result.requested_tokens, result.cached_tokens),
        "meta": meta,
    }


class ErrorDetail(TypedDict):
    message: str
    type: str
    code: int


class ErrorAnswer(TypedDict):
    error: ErrorDetail
    detail: str
    message: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """Render an error so that each of these clients finds the message in its own field."""
    return {
        "error": {"message": error.message, "type": error.code, "code": error.status_hint},
        "detail": error.message,
        "message": error.message,
    }


DIALECT = Dialect(
    name="jina",
    title="Jina and Cohere",
    recognised_by="`documents`",
    answers_with="`results`",
    recognises=lambda sent, on_own_path: True,
    prefixes=("jina", "cohere"),
    body=RerankBody,
    rules=Rules(own=("top_n", "return_documents", "instruction", "raw_scores", "truncate")),
    render=render,
    render_error=render_error,
)
