"""The dialect of /api/rerank, shaped as Ollama's other endpoints are. Pure.

The request is Jina's; in the answer a document is a string, and so is an error.
"""

from __future__ import annotations

from typing import NotRequired

from typing_extensions import TypedDict

from rerankd.api.dialects import jina
from rerankd.domain import RerankResult
from rerankd.errors import RerankdError

Body = jina.Body
RULES = jina.RULES
parse = jina.parse


class Row(TypedDict):
    index: int
    relevance_score: float
    document: NotRequired[str]


class Answer(TypedDict):
    model: str
    results: list[Row]
    prompt_eval_count: int


def render(result: RerankResult, request_id: str) -> Answer:
    """The JSON of an answer."""
    rows: list[Row] = []
    for scored in result.results:
        row: Row = {"index": scored.index, "relevance_score": scored.score}
        if scored.text is not None:
            row["document"] = scored.text
        rows.append(row)
    return {"model": result.model, "results": rows, "prompt_eval_count": result.asked_tokens}


class ErrorAnswer(TypedDict):
    error: str


def render_error(error: RerankdError) -> ErrorAnswer:
    """An error as Ollama says it."""
    return {"error": error.message}
