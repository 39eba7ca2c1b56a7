"""Jina's and Cohere's dialect: `documents` in, `results` out. Pure.

The answer carries the fields of all their SDKs, since no SDK minds one that it does not know, and each
misses one that it does: `meta` (AI SDK), `usage` and `model` (Haystack, Infinity), `object` "rerank" or none
(Infinity).
"""

from __future__ import annotations

import time
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from rerankd.api.body import check
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import InvalidRequest, RerankdError


class Body(BaseModel):
    """What a client sends. Fields it does not know are ignored; null means not sent."""

    model_config = ConfigDict(json_schema_extra={"example": {
        "model": "builtin:e5",
        "query": "什么是熊猫？",
        "top_n": 3,
        "documents": ["hi", "它是一种熊", "大熊猫是一种原产于中国的熊科动物。"],
    }})  # fmt: skip

    query: str = Field(description="the question")
    documents: list[str | dict[str, Any]] = Field(description='texts, or objects with a "text"')
    model: str | None = Field(None, description="any name, while one model is served")
    top_n: int | None = Field(None, description="how many of the best to return; null or 0: all")
    return_documents: bool | None = Field(None, description="whether the texts come back with the scores")
    instruction: str | None = Field(None, description="what the model should judge by, if it takes one")
    max_tokens_per_doc: int | None = Field(None, description="read at most so much of each document")
    max_chunks_per_doc: int | None = Field(None, description="read a long document in so many chunks")
    overlap_tokens: int | None = Field(None, description="tokens that a chunk shares with the one before")
    truncate: bool | None = Field(None, description="false: a document too long for the model is an error")
    raw_scores: bool | None = Field(None, description="true: the model's raw values, not 0 to 1")
    normalize: bool | None = Field(None, description="false is the same as raw_scores: true")


def parse(value: dict[str, Any]) -> RerankRequest:
    """The request in a JSON body. Raises InvalidRequest."""
    body = check(Body, value)
    for name in ("top_n", "max_tokens_per_doc", "max_chunks_per_doc", "overlap_tokens"):
        number = getattr(body, name)
        if number is not None and number < 0:
            raise InvalidRequest(
                f"{name!r} is {number}, but must not be negative. Leave it out for the default."
            )
    return RerankRequest(
        query=body.query,
        documents=tuple(_text(at, document) for at, document in enumerate(body.documents)),
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


def _text(at: int, document: str | dict[str, Any]) -> str:
    if isinstance(document, str):
        return document
    text = document.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(
            f'Document {at} is an object without a "text" string. Send strings or {{"text": …}}.'
        )
    return text


def render(result: RerankResult, request_id: str) -> dict[str, Any]:
    """The JSON of an answer; a document is in it only when it was asked for, and never as null."""
    rows: list[dict[str, Any]] = []
    for scored in result.results:
        row: dict[str, Any] = {"index": scored.index, "relevance_score": scored.score}
        if scored.text is not None:
            row["document"] = {"text": scored.text}
        rows.append(row)
    meta: dict[str, Any] = {
        "api_version": {"version": "2"},
        "billed_units": {"search_units": 1},
        "tokens": {"input_tokens": result.tokens, "output_tokens": 0},
        "transform": result.transform,
        "cached": result.cached,
    }
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


def render_error(error: RerankdError) -> dict[str, Any]:
    """An error in a shape that every one of these clients finds its sentence in."""
    return {
        "error": {"message": error.message, "type": error.code, "code": error.status_hint},
        "detail": error.message,
        "message": error.message,
    }
