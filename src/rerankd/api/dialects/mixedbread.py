"""Mixedbread's dialect: `query` and `input` in, `data` with the documents as `input` out. Pure."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from rerankd.api import options
from rerankd.api.body import check
from rerankd.api.dialects import jina, lenient
from rerankd.api.dialects.lenient import Query, Texts
from rerankd.domain import RerankRequest, RerankResult

RULES = options.Rules(own=("top_k", "return_input"))


class Body(lenient.Body):
    """What a client sends, beside the options."""

    model_config = ConfigDict(title="MixedbreadBody")
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "model": "mixedbread-ai/mxbai-rerank-large-v2",
        "query": "Who wrote To Kill a Mockingbird?",
        "input": ["Harper Lee wrote To Kill a Mockingbird.", "Moby-Dick is by Herman Melville."],
        "top_k": 1,
    }

    query: Query = Field(description="The question.")
    input: Texts = Field(description="The documents.")


def parse(value: dict[str, Any]) -> RerankRequest:
    """The request in a JSON body. Raises InvalidRequest."""
    body = check(Body, value)
    return options.request(RULES, value, query=body.query, documents=body.input, model=body.model)


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
    rows: list[Row] = []
    for scored in result.results:
        row: Row = {"index": scored.index, "score": scored.score, "object": "rank_result"}
        if scored.text is not None:
            row["input"] = scored.text
        rows.append(row)
    return {
        "object": "list",
        "model": result.model,
        "data": rows,
        "usage": jina.usage(result.asked_tokens, result.cached_tokens),
        "top_k": len(rows),
        "return_input": any("input" in row for row in rows),
    }


ErrorAnswer = jina.ErrorAnswer
render_error = jina.render_error
