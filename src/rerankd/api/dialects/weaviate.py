"""Weaviate's dialect (module reranker-transformers): `property` beside `documents` in, `scores` out. Pure.

Weaviate takes the scores by position and reads an error as a string. It sends no key and knows no options,
but asks first whether the service is there (see api/health.py).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from rerankd.api import options
from rerankd.api.body import check
from rerankd.api.dialects import lenient
from rerankd.api.dialects.lenient import Query, Texts
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import RerankdError

RULES = options.Rules(
    unused={"top_n": "every document gets a row"}, refused={"score_threshold": options.ALL_ROWS}
)


class Body(lenient.Body):
    """What Weaviate sends."""

    model_config = ConfigDict(title="WeaviateBody")
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "query": "what is a panda?",
        "documents": ["a bear of China", "a kind of bread"],
        "property": "",
    }

    query: Query = Field(description="The question.")
    documents: Texts = Field(description="The documents.")
    property: str = Field("", description="Always empty; it tells this dialect from others.")


def parse(value: dict[str, Any]) -> RerankRequest:
    """The request in a JSON body. Raises InvalidRequest."""
    body = check(Body, value)
    found = options.request(RULES, value, query=body.query, documents=body.documents, model=body.model)
    # The answer names each document by its text.
    return replace(found, return_documents=True)


class Row(TypedDict):
    document: str
    score: float


class Answer(TypedDict):
    scores: list[Row]


def render(result: RerankResult, request_id: str) -> Answer:
    """The JSON of an answer, its rows in the order of the request."""
    rows = sorted(result.results, key=lambda scored: scored.index)
    return {"scores": [{"document": scored.text or "", "score": scored.score} for scored in rows]}


class ErrorAnswer(TypedDict):
    error: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """An error as Weaviate reads it."""
    return {"error": error.message}
