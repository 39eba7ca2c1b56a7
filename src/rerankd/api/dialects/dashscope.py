"""Alibaba's DashScope dialect: `input` with query and documents, and `parameters` in; `output` out. Pure."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from rerankd.api import options
from rerankd.api.body import check
from rerankd.api.dialects import jina, lenient
from rerankd.api.dialects.lenient import Query, Texts
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import RerankdError

RULES = options.Rules(own=("top_n", "return_documents", "instruct"))


class Input(BaseModel):
    """The part of the body that is scored."""

    query: Query = Field(description="The question.")
    documents: Texts = Field(description="The documents.")


class Body(lenient.Body):
    """What a client sends. The options stand in `parameters`, or beside it."""

    model_config = ConfigDict(title="DashScopeBody")
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "model": "qwen3-rerank",
        "input": {"query": "什么是熊猫？", "documents": ["hi", "它是一种熊"]},
        "parameters": {"top_n": 1, "return_documents": True},
    }

    input: Input = Field(description="The question and the documents.")
    parameters: dict[str, Any] | None = Field(None, description="The options.")


def parse(value: dict[str, Any]) -> RerankRequest:
    """The request in a JSON body. Raises InvalidRequest."""
    body = check(Body, value)
    sent = {**value, **(body.parameters or {})}
    return options.request(
        RULES, sent, query=body.input.query, documents=body.input.documents, model=body.model
    )


class Output(TypedDict):
    results: list[jina.Row]


class Usage(TypedDict):
    total_tokens: int


class Answer(TypedDict):
    output: Output
    usage: Usage
    request_id: str


def render(result: RerankResult, request_id: str) -> Answer:
    """The JSON of an answer."""
    return {
        "output": {"results": jina.rows(result)},
        "usage": {"total_tokens": result.asked_tokens},
        "request_id": request_id,
    }


class ErrorAnswer(TypedDict):
    code: str
    message: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """An error as DashScope says it."""
    return {"code": error.code, "message": error.message}
