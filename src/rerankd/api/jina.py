"""Jina's and Cohere's dialect (v1 and v2): `documents` in, `results` out. Pure.

The answer carries the fields of all their SDKs, since no SDK minds one that it does not know, and each
misses one that it does: `meta` (AI SDK), `usage` and `model` (Haystack, Infinity), `object` "rerank" or none
(Infinity). Errors likewise.
"""

from __future__ import annotations

import time
from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from rerankd.api import lenient
from rerankd.api.body import check
from rerankd.api.lenient import Count, Flag, Query, Texts
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import RerankdError


class Body(lenient.Body):
    """What a client sends. Fields it does not know are ignored; null means not sent."""

    model_config = ConfigDict(title="RerankBody", json_schema_extra={"example": {
        "model": "builtin:e5",
        "query": "什么是熊猫？",
        "top_n": 3,
        "documents": ["hi", "它是一种熊", "大熊猫是一种原产于中国的熊科动物。"],
    }})  # fmt: skip

    query: Query = Field(description="the question")
    documents: Texts = Field(description='texts, or objects with a "text" or with other fields')
    rank_fields: list[str] | None = Field(None, description="the fields of a document object that count")
    top_n: Count = Field(None, description="how many of the best to return; null or 0: all")
    return_documents: Flag = Field(None, description="whether the texts come back with the scores")
    instruction: str | None = Field(None, description="what the model should judge by, if it takes one")
    max_tokens_per_doc: Count = Field(None, description="read at most so much of each document")
    max_chunks_per_doc: Count = Field(None, description="read a long document in so many chunks")
    overlap_tokens: Count = Field(None, description="tokens that a chunk shares with the one before")
    truncate: Flag = Field(None, description="false: a document too long for the model is an error")
    raw_scores: Flag = Field(None, description="true: the model's raw values, not 0 to 1")
    normalize: Flag = Field(None, description="false is the same as raw_scores: true")


def parse(value: dict[str, Any]) -> RerankRequest:
    """The request in a JSON body. Raises InvalidRequest."""
    body = check(Body, value)
    return RerankRequest(
        query=lenient.text(body.query, "The query"),
        documents=lenient.texts(body.documents, body.rank_fields or ()),
        model=body.model or None,
        top_n=body.top_n,
        return_documents=bool(body.return_documents),
        instruction=body.instruction or None,
        max_tokens_per_doc=body.max_tokens_per_doc or None,
        max_chunks_per_doc=body.max_chunks_per_doc or 1,
        overlap_tokens=body.overlap_tokens or 0,
        truncate=body.truncate is not False,
        raw_scores=bool(body.raw_scores) or body.normalize is False,
    )


class Document(TypedDict):
    text: str


class Row(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[Document]


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Unscored(TypedDict):
    index: int
    reason: str


class Meta(TypedDict):
    api_version: dict[str, str]
    billed_units: dict[str, int]
    tokens: dict[str, int]
    transform: str
    cached: NotRequired[int]
    cut: NotRequired[list[int]]
    blank: NotRequired[list[int]]
    errors: NotRequired[list[Unscored]]
    warnings: NotRequired[list[str]]


class Answer(TypedDict):
    id: str
    object: Literal["rerank"]
    created: int
    model: str
    results: list[Row]
    usage: Usage
    meta: Meta


def render(result: RerankResult, request_id: str) -> Answer:
    """The JSON of an answer; a document is in it only when it was asked for, and never as null."""
    rows: list[Row] = []
    for scored in result.results:
        row: Row = {"index": scored.index, "relevance_score": scored.score}
        if scored.text is not None:
            row["document"] = {"text": scored.text}
        rows.append(row)
    meta: Meta = {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": result.tokens, "output_tokens": 0},
        "transform": result.transform,
    }
    if result.cached:
        meta["cached"] = result.cached
    if result.cut:
        meta["cut"] = list(result.cut)
    if result.blank:
        meta["blank"] = list(result.blank)
    if result.errors:
        meta["errors"] = [{"index": error.index, "reason": error.reason} for error in result.errors]
    if result.warnings:
        meta["warnings"] = list(result.warnings)
    return {
        "id": request_id,
        "object": "rerank",
        "created": int(time.time()),
        "model": result.model,
        "results": rows,
        "usage": {"prompt_tokens": result.tokens, "completion_tokens": 0, "total_tokens": result.tokens},
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
    """An error in a shape that every one of these clients finds its sentence in."""
    return {
        "error": {"message": error.message, "type": error.code, "code": error.status_hint},
        "detail": error.message,
        "message": error.message,
    }
