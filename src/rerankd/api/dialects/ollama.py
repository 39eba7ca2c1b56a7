"""The dialect of /api/rerank, shaped as Ollama's other endpoints are. Pure.

The request is Jina's; in the answer a document is a string, and so is an error.
"""

from __future__ import annotations

from typing_extensions import TypedDict

from rerankd.api.dialects import jina, voyage
from rerankd.api.dialects.dialect import Dialect, plain_error, rows
from rerankd.domain import RerankResult


class Answer(TypedDict):
    model: str
    results: list[voyage.Row]
    prompt_eval_count: int


def render(result: RerankResult, request_id: str) -> Answer:
    """The JSON of an answer."""
    return {"model": result.model, "results": rows(result), "prompt_eval_count": result.requested_tokens}


DIALECT = Dialect(
    name="ollama",
    title="Ollama",
    told_by="its path",
    answers_with="`results`, a document being a string",
    recognises=lambda sent, at_home: at_home,
    paths={"/api/rerank": "Ollama"},
    body=jina.RerankBody,
    rules=jina.DIALECT.rules,
    render=render,
    render_error=plain_error,
)
