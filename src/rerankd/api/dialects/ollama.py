"""The dialect of /api/rerank, in the style of Ollama's other endpoints. Pure.

The request is Jina's. In the response, documents and errors are strings.
"""

from __future__ import annotations

from typing_extensions import TypedDict

from rerankd.api.dialects import jina, voyage
from rerankd.api.dialects.dialect import Dialect, plain_error, rows
from rerankd.rerank_result import RerankResult


class Answer(TypedDict):
    model: str
    results: list[voyage.Row]
    prompt_eval_count: int


def render(result: RerankResult, request_id: str) -> Answer:
    """Return the response JSON."""
    return {"model": result.model, "results": rows(result), "prompt_eval_count": result.requested_tokens}


DIALECT = Dialect(
    name="ollama",
    title="Ollama",
    recognised_by="its path",
    answers_with="`results`, with documents as strings",
    recognises=lambda sent, on_own_path: on_own_path,
    paths={"/api/rerank": "Ollama"},
    body=jina.RerankBody,
    rules=jina.DIALECT.rules,
    render=render,
    render_error=plain_error,
)
