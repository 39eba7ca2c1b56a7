"""The dialect of Voyage: `documents` with `top_k` or `truncation` in, `data` out. Pure.

Without these two options a body looks like Jina's; the path prefix /voyage then selects this dialect.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NotRequired

from typing_extensions import TypedDict

from rerankd.api.dialects.dialect import Dialect, Question, rows
from rerankd.api.dialects.option_rules import Rules
from rerankd.errors import RerankdError
from rerankd.rerank_result import RerankResult


class VoyageBody(Question):
    """The request body without the options."""

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
    """Return the response JSON; documents are strings."""
    return {
        "object": "list",
        "data": rows(result),
        "model": result.model,
        "usage": {"total_tokens": result.requested_tokens},
    }


class ErrorAnswer(TypedDict):
    detail: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """Render an error as Voyage does."""
    return {"detail": error.message}


DIALECT = Dialect(
    name="voyage",
    title="Voyage",
    recognised_by="`top_k` or `truncation`, without `top_n`",
    answers_with="`data`",
    recognises=lambda sent, on_own_path: "top_n" not in sent and bool(sent.keys() & {"truncation", "top_k"}),
    prefixes=("voyage",),
    body=VoyageBody,
    rules=Rules(own=("top_k", "return_documents", "truncation")),
    render=render,
    render_error=render_error,
)
