"""The dialect of vLLM's /score: one query with many documents, or pairs; scores in the order sent. Pure.

A body with different queries becomes several requests: consecutive pairs with the same query are one request.
The documents of these requests, one request after another, are the pairs in the order sent.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import AliasChoices, Field
from typing_extensions import TypedDict

from rerankd.api.dialects import images, jina
from rerankd.api.dialects.dialect import Body, Dialect
from rerankd.api.dialects.lenient import OneOrMore
from rerankd.api.dialects.option_rules import ALL_ROWS, NO_TEXTS, Rules, request
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest
from rerankd.rerank_result import RerankResult


class ScoreBody(Body):
    """The request body without the options.

    vLLM's other field names are accepted too: data_1 and data_2, or queries and documents or items.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "model": "BAAI/bge-reranker-v2-m3",
        "text_1": "What is the capital of France?",
        "text_2": ["The capital of Brazil is Brasilia.", "The capital of France is Paris."],
    }

    text_1: OneOrMore = Field(
        description="The query, or a list with one query for each text_2.",
        validation_alias=AliasChoices("text_1", "data_1", "queries"),
    )
    text_2: OneOrMore = Field(
        description="The document, or a list of documents.",
        validation_alias=AliasChoices("text_2", "data_2", "documents", "items"),
    )

    def requests(self, rules: Rules, value: Mapping[str, Any]) -> tuple[RerankRequest, ...]:
        queries = [images.content(query, f"Query {at}") for at, query in enumerate(self.text_1)]
        documents = self.text_2
        if len(queries) == 1:
            queries *= max(len(documents), 1)
        if not documents or len(queries) != len(documents):
            raise InvalidRequest(
                f"The number of queries ({len(queries)}) does not match the number of documents "
                f"({len(documents)}). Send at least one document, and one query or one for each document."
            )
        whole = request(rules, value, query="", documents=documents, model=self.model)
        pairs = zip(queries, whole.documents, strict=True)
        runs = itertools.groupby(pairs, key=lambda pair: pair[0])
        return tuple(
            replace(
                whole,
                query=query,
                documents=tuple(document for _, document in run),
                warnings=() if at else whole.warnings,  # only once
            )
            for at, (query, run) in enumerate(runs)
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


def render(result: RerankResult, request_id: str) -> Answer:
    """Return the response JSON, with the rows in the order of the request."""
    rows = sorted(result.results, key=lambda scored: scored.index)
    return {
        "id": request_id,
        "object": "list",
        "created": int(time.time()),
        "model": result.model,
        "data": [{"index": one.index, "object": "score", "score": one.score} for one in rows],
        "usage": jina.usage(result.requested_tokens, result.cached_tokens),
    }


DIALECT = Dialect(
    name="vllm",
    title="vLLM score",
    recognised_by="its path",
    answers_with="`data`, in the order sent",
    recognises=lambda sent, on_own_path: on_own_path,
    paths={"/v1/score": "vLLM", "/score": "vLLM"},
    body=ScoreBody,
    rules=Rules(
        own=("instruction", "use_activation"),
        unused={"top_n": "the response has a score for every pair", "return_documents": NO_TEXTS},
        refused={"score_threshold": ALL_ROWS},
    ),
    render=render,
    render_error=jina.render_error,
)
