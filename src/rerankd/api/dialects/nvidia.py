"""The dialect of NVIDIA NIM (/v1/ranking): `passages` in, `rankings` with logits out. Pure.

A logit is the model's raw score, so it is not normalized; clients that need 0 to 1 normalize it themselves.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field
from typing_extensions import TypedDict

from rerankd.api.dialects.dialect import Dialect, Question
from rerankd.api.dialects.lenient import Query, Texts
from rerankd.api.dialects.option_rules import NO_TEXTS, Rules
from rerankd.errors import RerankdError
from rerankd.rerank_result import RerankResult


class RankingBody(Question):
    """The request body without the options."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "model": "nvidia/nv-rerankqa-mistral-4b-v3",
        "query": {"text": "which way did the traveler go?"},
        "passages": [{"text": "two roads diverged in a yellow wood"}, {"text": "then took the other"}],
    }

    query: Query = Field(description='The query, as {"text": …}.')
    documents: Texts = Field(
        description='The documents to score, each as {"text": …}.', validation_alias="passages"
    )


class Row(TypedDict):
    index: int
    logit: float


class Usage(TypedDict):
    prompt_tokens: int
    total_tokens: int


class Answer(TypedDict):
    rankings: list[Row]
    usage: Usage


def render(result: RerankResult, request_id: str) -> Answer:
    """Return the response JSON."""
    return {
        "rankings": [{"index": scored.index, "logit": scored.score} for scored in result.results],
        "usage": {"prompt_tokens": result.requested_tokens, "total_tokens": result.requested_tokens},
    }


class ErrorAnswer(TypedDict):
    object: Literal["error"]
    message: str
    detail: str
    type: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """Render an error as NIM does."""
    return {"object": "error", "message": error.message, "detail": error.message, "type": error.code}


DIALECT = Dialect(
    name="nvidia",
    title="NVIDIA NIM",
    recognised_by="`passages`",
    answers_with="`rankings` with logits (raw scores)",
    recognises=(
        lambda sent, on_own_path: (
            "documents" not in sent and ("passages" in sent or (on_own_path and "input" not in sent))
        )
    ),
    paths={
        "/v1/ranking": "NVIDIA NIM",
        "/ranking": "NVIDIA NIM",
        "/v1/retrieval/nvidia/reranking": "NVIDIA's API catalog, Weaviate's reranker-nvidia",
    },
    body=RankingBody,
    rules=Rules(
        own=("truncate",),
        unused={"raw_scores": "a logit is a raw score", "return_documents": NO_TEXTS},
        defaults={"raw_scores": True},
    ),
    render=render,
    render_error=render_error,
)
