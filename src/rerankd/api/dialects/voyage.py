"""Voyage's dialect: `top_k` or `truncation` beside `documents` in, `data` out. Pure.

Without these two a body can't be told from Jina's: a path below /voyage does.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from rerankd.api import options
from rerankd.api.body import check
from rerankd.api.dialects import lenient
from rerankd.api.dialects.lenient import Query, Texts
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import RerankdError

RULES = options.Rules(own=("top_k", "return_documents", "truncation"))


class Body(lenient.Body):
    """What a client sends, beside the options."""

    model_config = ConfigDict(title="VoyageBody")
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "query": "When is Apple's conference call scheduled?",
        "documents": ["The Mediterranean diet emphasizes fish.", "Apple's conference call is on Thursday."],
        "model": "rerank-2.5",
        "top_k": 1,
    }

    query: Query = Field(description="The question.")
    documents: Texts = Field(description="The documents.")


def parse(value: dict[str, Any]) -> RerankRequest:
    """The request in a JSON body. Raises InvalidRequest."""
    body = check(Body, value)
    return options.request(RULES, value, query=body.query, documents=body.documents, model=body.model)


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
    rows: list[Row] = []
    for scored in result.results:
        row: Row = {"relevance_score": scored.score, "index": scored.index}
        if scored.text is not None:
            row["document"] = scored.text
        rows.append(row)
    return {
        "object": "list",
        "data": rows,
        "model": result.model,
        "usage": {"total_tokens": result.asked_tokens},
    }


class ErrorAnswer(TypedDict):
    detail: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """An error as Voyage says it."""
    return {"detail": error.message}
