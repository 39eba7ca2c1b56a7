"""Weaviate's dialect (module reranker-transformers): `property` beside `documents` in, `scores` out. Pure.

Weaviate takes the scores by position and reads an error as a string. It sends no key and knows no options,
but asks first whether the service is there (see api/health.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import TypedDict

from rerankd.api.dialects.dialect import Dialect, Question, plain_error
from rerankd.api.dialects.option_rules import ALL_ROWS, Rules
from rerankd.domain import RerankRequest, RerankResult


class WeaviateBody(Question):
    """What Weaviate sends."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "query": "what is a panda?",
        "documents": ["a bear of China", "a kind of bread"],
        "property": "",
    }

    property: str = Field("", description="Always empty; it tells this dialect from others.")

    def requests(self, rules: Rules, value: Mapping[str, Any]) -> tuple[RerankRequest, ...]:
        # The answer names each document by its text.
        return tuple(replace(asked, return_documents=True) for asked in super().requests(rules, value))


class Row(TypedDict):
    document: str
    score: float


class Answer(TypedDict):
    scores: list[Row]


def render(result: RerankResult, request_id: str) -> Answer:
    """The JSON of an answer, its rows in the order of the request."""
    rows = sorted(result.results, key=lambda scored: scored.index)
    return {"scores": [{"document": scored.text or "", "score": scored.score} for scored in rows]}


DIALECT = Dialect(
    name="weaviate",
    title="Weaviate",
    told_by="`property`",
    answers_with="`scores`, in the order sent",
    recognises=lambda sent, at_home: "property" in sent,
    body=WeaviateBody,
    rules=Rules(unused={"top_n": "every document gets a row"}, refused={"score_threshold": ALL_ROWS}),
    render=render,
    render_error=plain_error,
)
