"""Voyage's dialect: `top_k` or `truncation` beside `documents` in, `data` out. Pure."""

from __future__ import annotations

from typing import Any, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from rerankd.api import lenient
from rerankd.api.body import check
from rerankd.api.lenient import Count, Flag, Query, Texts
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import RerankdError


class Body(lenient.Body):
    """What a client sends."""

    model_config = ConfigDict(title="VoyageBody", json_schema_extra={"example": {
        "query": "When is Apple's conference call scheduled?",
        "documents": ["The Mediterranean diet emphasizes fish.", "Apple's conference call is on Thursday."],
        "model": "rerank-2.5",
        "top_k": 1,
    }})  # fmt: skip

    query: Query = Field(description="the question")
    documents: Texts = Field(description="the documents")
    top_k: Count = Field(None, description="how many of the best to return; null or 0: all")
    return_documents: Flag = Field(None, description="whether the texts come back with the scores")
    truncation: Flag = Field(None, description="false: a document too long for the model is an error")


def parse(value: dict[str, Any]) -> RerankRequest:
    """The request in a JSON body. Raises InvalidRequest."""
    body = check(Body, value)
    return RerankRequest(
        query=lenient.text(body.query, "The query"),
        documents=lenient.texts(body.documents),
        model=body.model or None,
        top_n=body.top_k,
        return_documents=bool(body.return_documents),
        truncate=body.truncation is not False,
    )


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
        "usage": {"total_tokens": result.tokens},
    }


class ErrorAnswer(TypedDict):
    detail: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """An error as Voyage says it."""
    return {"detail": error.message}
