"""Voyage's dialect: `top_k` or `truncation` beside `documents` in, `data` out. Pure.

Without these two a body can't be told from Jina's: a path below /voyage does.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NotRequired

from typing_extensions import TypedDict

from rerankd.api.dialects.dialect import Dialect, Question, rows
from rerankd.api.dialects.option_rules import Rules
from rerankd.domain import RerankResult
from rerankd.errors import RerankdError


class VoyageBody(Question):
    """What a client sends, beside the options."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "query": "When is Apple's conference call scheduled?",
        "documents": ["The Mediterranean diet emphasizes fish.", "Apple's conference call is on Thursday."],
        "model": "rerank-2.5",
        "top_k": 1,
    }


class Row(TypedDict):
    relevance_score: float
    index: int
    document: NotRequired[str]


class Usage(TypedDict):
    total_tokens: int


class Answer(TypedDict):
    object: Literal["list"]
    data: list[Row]
    model: str
    usage: Usage


def render(result: RerankResult, request_id: str) -> Answer:
    """The JSON of an answer; a document is a string in it."""
    return {
        "object": "list",
        "data": rows(result),
        "model": result.model,
        "usage": {"total_tokens": result.requested_tokens},
    }


class ErrorAnswer(TypedDict):
    detail: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """An error as Voyage says it."""
    return {"detail": error.message}


DIALECT = Dialect(
    name="voyage",
    title="Voyage",
    told_by="`top_k` or `truncation`, without `top_n`",
    answers_with="`data`",
    recognises=lambda sent, at_home: "top_n" not in sent and bool(sent.keys() & {"truncation", "top_k"}),
    prefixes=("voyage",),
    body=VoyageBody,
    rules=Rules(own=("top_k", "return_documents", "truncation")),
    render=render,
    render_error=render_error,
)
