"""The dialect of Mixedbread: `query` and `input` in, `data` with the documents as `input` out. Pure."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from rerankd.api.dialects import jina
from rerankd.api.dialects.dialect import Dialect, Question, rows
from rerankd.api.dialects.lenient import Texts
from rerankd.api.dialects.option_rules import Rules
from rerankd.rerank_result import RerankResult


class MixedbreadBody(Question):
    """The request body without the options."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "model": "mixedbread-ai/mxbai-rerank-large-v2",
        "query": "Who wrote To Kill a Mockingbird?",
        "input": ["Harper Lee wrote To Kill a Mockingbird.", "Moby-Dick is by Herman Melville."],
        "top_k": 1,
    }

    documents: Texts = Field(description="The documents to score.", validation_alias="input")


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
    """Return the response JSON. Mixedbread's own client also reads `top_k` and `return_input`."""
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
    recognised_by="`input` beside `query`",
    answers_with="`data`, with documents as `input`",
    recognises=(
        lambda sent, on_own_path: (
            "input" in sent and "documents" not in sent and not isinstance(sent["input"], dict)
        )
    ),
    body=MixedbreadBody,
    rules=Rules(own=("top_k", "return_input")),
    render=render,
    render_error=jina.render_error,
)
