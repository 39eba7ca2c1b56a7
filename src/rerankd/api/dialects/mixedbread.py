"""Mixedbread's dialect: `query` and `input` in, `data` with the documents as `input` out. Pure."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from rerankd.api.dialects import jina
from rerankd.api.dialects.dialect import Dialect, Question, rows
from rerankd.api.dialects.lenient import Texts
from rerankd.api.dialects.option_rules import Rules
from rerankd.domain import RerankResult


class MixedbreadBody(Question):
    """What a client sends, beside the options."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "model": "mixedbread-ai/mxbai-rerank-large-v2",
        "query": "Who wrote To Kill a Mockingbird?",
        "input": ["Harper Lee wrote To Kill a Mockingbird.", "Moby-Dick is by Herman Melville."],
        "top_k": 1,
    }

    documents: Texts = Field(description="The documents.", validation_alias="input")


class Row(TypedDict):
    index: int
    score: float
    input: NotRequired[str]
    object: Literal["rank_result"]


class Answer(TypedDict):
    object: Literal["list"]
    model: str
    data: list[Row]
    usage: jina.Usage
    top_k: int
    return_input: bool


def render(result: RerankResult, request_id: str) -> Answer:
    """The JSON of an answer. Mixedbread's own client reads `top_k` and `return_input`, too."""
    found = rows(result, score="score", text="input")
    return {
        "object": "list",
        "model": result.model,
        "data": [row | {"object": "rank_result"} for row in found],
        "usage": jina.usage(result.requested_tokens, result.cached_tokens),
        "top_k": len(found),
        "return_input": any("input" in row for row in found),
    }


DIALECT = Dialect(
    name="mixedbread",
    title="Mixedbread",
    told_by="`input` beside `query`",
    answers_with="`data`, a document being `input`",
    recognises=(
        lambda sent, at_home: (
            "input" in sent and "documents" not in sent and not isinstance(sent["input"], dict)
        )
    ),
    body=MixedbreadBody,
    rules=Rules(own=("top_k", "return_input")),
    render=render,
    render_error=jina.render_error,
)
