"""vLLM's /score: one text against many, or as many pairs as there are texts; scores in the order sent. Pure.

Its `parse` gives several requests where the queries differ: pairs that follow one another with the same query
are one request. Their documents, one request after the other, are the pairs in the order sent.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, ConfigDict, Field
from typing_extensions import TypedDict

from rerankd.api import options
from rerankd.api.body import check
from rerankd.api.dialects import jina, lenient
from rerankd.api.dialects.lenient import OneOrMore
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import InvalidRequest

RULES = options.Rules(
    own=("instruction", "use_activation"),
    unused={"top_n": "every pair gets a score", "return_documents": options.NO_TEXTS},
    refused={"score_threshold": options.ALL_ROWS},
)


class Body(lenient.Body):
    """What a client sends, beside the options; the fields go by vLLM's other names too (data_1 and data_2,
    queries and documents or items)."""

    model_config = ConfigDict(title="ScoreBody")
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "model": "BAAI/bge-reranker-v2-m3",
        "text_1": "What is the capital of France?",
        "text_2": ["The capital of Brazil is Brasilia.", "The capital of France is Paris."],
    }

    text_1: OneOrMore = Field(
        description="The query, or a list of them, one for each text_2.",
        validation_alias=AliasChoices("text_1", "data_1", "queries"),
    )
    text_2: OneOrMore = Field(
        description="The document, or a list of them.",
        validation_alias=AliasChoices("text_2", "data_2", "documents", "items"),
    )


def parse(value: dict[str, Any]) -> tuple[RerankRequest, ...]:
    """The requests in a JSON body, at least one. Raises InvalidRequest."""
    body = check(Body, value)
    queries = [lenient.text(query, f"Query {at}") for at, query in enumerate(body.text_1)]
    documents = body.text_2
    if len(queries) == 1:
        queries *= max(len(documents), 1)
    if not documents or len(queries) != len(documents):
        raise InvalidRequest(
            f"There are {len(queries)} queries and {len(documents)} documents. Send one query, or one for "
            "each document."
        )
    whole = options.request(RULES, value, query=queries[0], documents=documents, model=body.model)
    pairs = zip(queries, whole.documents, strict=True)
    runs = itertools.groupby(pairs, key=lambda pair: pair[0])
    return tuple(
        replace(
            whole,
            query=query,
            documents=tuple(document for _, document in run),
            warnings=() if at else whole.warnings,  # said once
        )
        for at, (query, run) in enumerate(runs)
    )


def warnings(results: Sequence[RerankResult]) -> tuple[str, ...]:
    """The warnings of all results. Where there are several, each says which pairs it is about, since each
    result counts its documents from 0."""
    if len(results) == 1:
        return results[0].warnings
    found, start = [], 0
    for result in results:
        end = start + len(result.results)
        found += [f"Pairs {start} to {end - 1}: {warning}" for warning in result.warnings]
        start = end
    return tuple(found)


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
    tokens = sum(result.asked_tokens for result in results)
    cached = sum(result.cached_tokens for result in results)
    return {
        "id": request_id,
        "object": "list",
        "created": int(time.time()),
        "model": results[0].model,
        "data": [{"index": at, "object": "score", "score": value} for at, value in enumerate(values)],
        "usage": jina.usage(tokens, cached),
    }


ErrorAnswer = jina.ErrorAnswer
render_error = jina.render_error
