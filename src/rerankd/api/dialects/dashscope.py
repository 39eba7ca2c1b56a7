"""The dialect of Alibaba DashScope: `input` with query and documents, `parameters`; `output` out. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from rerankd.api.dialects import jina, voyage
from rerankd.api.dialects.dialect import Body, Dialect
from rerankd.api.dialects.lenient import Query, Texts
from rerankd.api.dialects.option_rules import Rules, request
from rerankd.domain import RerankRequest
from rerankd.errors import RerankdError
from rerankd.rerank_result import RerankResult


class Input(BaseModel):
    """The query and the documents."""

    query: Query = Field(description="The query, usually a question.")
    documents: Texts = Field(description="The documents to score.")


class DashScopeBody(Body):
    """The request body. The options are in `parameters` or at the top level."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "model": "qwen3-rerank",
        "input": {"query": "什么是熊猫？", "documents": ["hi", "它是一种熊"]},
        "parameters": {"top_n": 1, "return_documents": True},
    }

    input: Input = Field(description="The query and the documents.")
    parameters: dict[str, Any] | None = Field(
        None, description="The options, such as top_n. Options at the top level are accepted too."
    )

    def requests(self, rules: Rules, value: Mapping[str, Any]) -> tuple[RerankRequest, ...]:
        own = {name: one for name, one in (self.parameters or {}).items() if one is not None}
        sent = {**value, **own}
        sent_input = self.input
        return (
            request(rules, sent, query=sent_input.query, documents=sent_input.documents, model=self.model),
        )


class Output(TypedDict):
    results: list[jina.Row]


class Answer(TypedDict):
    output: Output
    usage: voyage.Usage
    request_id: str


def render(result: RerankResult, request_id: str) -> Answer:
    """Return the response JSON."""
    return {
        "output": {"results": jina.rows(result)},
        "usage": {"total_tokens": result.requested_tokens},
        "request_id": request_id,
    }


class ErrorAnswer(TypedDict):
    code: str
    message: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """Render an error as DashScope does."""
    return {"code": error.code, "message": error.message}


DIALECT = Dialect(
    name="dashscope",
    title="DashScope",
    recognised_by="`input`, an object",
    answers_with="`output.results`",
    recognises=(
        lambda sent, on_own_path: (
            isinstance(sent.get("input"), dict) or (on_own_path and "documents" not in sent)
        )
    ),
    paths={"/api/v1/services/rerank/text-rerank/text-rerank": "DashScope"},
    body=DashScopeBody,
    rules=Rules(own=("top_n", "return_documents", "instruct")),
    render=render,
    render_error=render_error,
)
