"""The dialect of Weaviate (reranker-transformers): `documents` with `property` in, `scores` out. Pure.

Weaviate assigns the scores by position and expects an error as a string. It sends no key and no options. At
its start it waits until the service is ready (see api/health.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field
from typing_extensions import TypedDict

from rerankd.api.dialects.dialect import Dialect, Question, plain_error
from rerankd.api.dialects.option_rules import ALL_ROWS, Rules
from rerankd.domain import RerankRequest
from rerankd.rerank_result import RerankResult


class WeaviateBody(Question):
    """The request body."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "query": "what is a panda?",
        "documents": ["a bear of China", "a kind of bread"],
        "property": "",
    }

    property: str = Field("", description="Always empty. Its presence identifies this dialect.")

    def requests(self, rules: Rules, value: Mapping[str, Any]) -> tuple[RerankRequest, ...]:
        # The response identifies each document by its text.
        return tuple(replace(one, return_documents=True) for one in super().requests(rules, value))


class Row(TypedDict):
    document: str
    score: float


class Answer(TypedDict):
    scores: list[Row]


def render(result: RerankResult, request_id: str) -> Answer:
    """Return the response JSON, with the rows in the order of the request."""
    rows = sorted(result.results, key=lambda scored: scored.index)
    return {"scores": [{"document": scored.text or "", "score": scored.score} for scored in rows]}


DIALECT = Dialect(
    name="weaviate",
    title="Weaviate",
    recognised_by="`property`",
    answers_with="`scores`, in the order sent",
    recognises=lambda sent, on_own_path: "property" in sent,
    body=WeaviateBody,
    rules=Rules(
        unused={"top_n": "the response has a row for every document"}, refused={"score_threshold": ALL_ROWS}
    ),
    render=render,
    render_error=plain_error,
)
