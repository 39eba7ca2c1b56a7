"""Alibaba's DashScope dialect: `input` with query and documents, and `parameters` in; `output` out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from rerankd.api.dialects import jina, voyage
from rerankd.api.dialects.dialect import Body, Dialect
from rerankd.api.dialects.lenient import Query, Texts
from rerankd.api.dialects.option_rules import Rules, request
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import RerankdError


class Input(BaseModel):
    """The part of the body that is scored."""

    query: Query = Field(description="The question.")
    documents: Texts = Field(description="The documents.")


class DashScopeBody(Body):
    """What a client sends. The options stand in `parameters`, or beside it."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "model": "qwen3-rerank",
        "input": {"query": "什么是熊猫？", "documents": ["hi", "它是一种熊"]},
        "parameters": {"top_n": 1, "return_documents": True},
    }

    input: Input = Field(description="The question and the documents.")
    parameters: dict[str, Any] | None = Field(None, description="The options.")

    def requests(self, rules: Rules, value: Mapping[str, Any]) -> tuple[RerankRequest, ...]:
        own = {name: one for name, one in (self.parameters or {}).items() if one is not None}
        sent = {**value, **own}
        asked = self.input
        return (request(rules, sent, query=asked.query, documents=asked.documents, model=self.model),)


class Output(TypedDict):
    results: list[jina.Row]


class Answer(TypedDict):
    output: Output
    usage: voyage.Usage
    request_id: str


def render(result: RerankResult, request_id: str) -> Answer:
    """The JSON of an answer."""
    return {
        "output": {"results": jina.rows(result)},
        "usage": {"total_tokens": result.requested_tokens},
        "request_id": request_id,
    }


class ErrorAnswer(TypedDict):
    code: str
    message: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """An error as DashScope says it."""
    return {"code": error.code, "message": error.message}


DIALECT = Dialect(
    name="dashscope",
    title="DashScope",
    told_by="`input`, an object",
    answers_with="`output.results`",
    recognises=(
        lambda sent, at_home: isinstance(sent.get("input"), dict) or (at_home and "documents" not in sent)
    ),
    paths={"/api/v1/services/rerank/text-rerank/text-rerank": "DashScope"},
    body=DashScopeBody,
    rules=Rules(own=("top_n", "return_documents", "instruct")),
    render=render,
    render_error=render_error,
)
