"""vLLM's /score: one text against many, or as many pairs as there are texts; scores in the order sent. Pure.

Its `parse` gives several requests where the queries differ: pairs that follow one another with the same query
are one request. Their documents, one request after the other, are the pairs in the order sent.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import AliasChoices, ConfigDict, Field
from typing_extensions import TypedDict

from rerankd.api import jina, lenient
from rerankd.api.body import check
from rerankd.api.lenient import Flag, OneOrMore
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import InvalidRequest


class Body(lenient.Body):
    """What a client sends; the fields go by vLLM's other names too (data_1 and data_2, queries and
    documents or items)."""

    model_config = ConfigDict(title="ScoreBody", json_schema_extra={"example": {
        "model": "BAAI/bge-reranker-v2-m3",
        "text_1": "What is the capital of France?",
        "text_2": ["The capital of Brazil is Brasilia.", "The capital of France is Paris."],
    }})  # fmt: skip

    text_1: OneOrMore = Field(
        description="the query, or a list of them, one for each text_2",
        validation_alias=AliasChoices("text_1", "data_1", "queries"),
    )
    text_2: OneOrMore = Field(
        description="the document, or a list of them",
        validation_alias=AliasChoices("text_2", "data_2", "documents", "items"),
    )
    instruction: str | None = Field(None, description="what the model should judge by, if it takes one")
    use_activation: Flag = Field(
        None,
        description="false: the model's raw values, not 0 to 1",
        validation_alias=AliasChoices("use_activation", "activation"),
    )


def parse(value: dict[str, Any]) -> tuple[RerankRequest, ...]:
    """The requests in a JSON body, at least one. Raises InvalidRequest."""
    body = check(Body, value)
    queries = [lenient.text(query, f"Query {at}") for at, query in enumerate(body.text_1)]
    documents = lenient.texts(body.text_2)
    if len(queries) == 1:
        queries *= max(len(documents), 1)
    if not documents or len(queries) != len(documents):
        raise InvalidRequest(
            f"There are {len(queries)} queries and {len(documents)} documents. Send one query, or one for "
            "each document."
        )
    pairs = zip(queries, documents, strict=True)
    return tuple(
        RerankRequest(
            query=query,
            documents=tuple(document for _, document in run),
            model=body.model or None,
            instruction=body.instruction or None,
            raw_scores=body.use_activation is False,
        )
        for query, run in itertools.groupby(pairs, key=lambda pair: pair[0])
    )


class Row(TypedDict):
    index: int
    object: Literal["score"]
    score: float


class Answer(TypedDict):
    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Row]
    usage: jina.Usage


def render(results: Sequence[RerankResult], request_id: str) -> Answer:
    """The JSON of an answer, of the results in the order of `parse`."""
    values = [
        scored.score
        for result in results
        for scored in sorted(result.results, key=lambda scored: scored.index)
    ]
    tokens = sum(result.tokens for result in results)
    return {
        "id": request_id,
        "object": "list",
        "created": int(time.time()),
        "model": results[0].model,
        "data": [{"index": at, "object": "score", "score": value} for at, value in enumerate(values)],
        "usage": {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens},
    }


ErrorAnswer = jina.ErrorAnswer
render_error = jina.render_error
