"""The dialect of Text Embeddings Inference (TEI): `texts` in, a list of all scores out, best first. Pure."""

from __future__ import annotations

from typing import Any, ClassVar, NotRequired

from pydantic import AliasChoices, Field
from typing_extensions import TypedDict

from rerankd.api.dialects.dialect import Dialect, Question, rows
from rerankd.api.dialects.lenient import Texts
from rerankd.api.dialects.option_rules import ALL_ROWS, Rules
from rerankd.errors import RerankdError
from rerankd.rerank_result import RerankResult


class TeiBody(Question):
    """The request body without the options. The response has a row for each text: clients count the rows."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "query": "What is Deep Learning?",
        "texts": ["Deep Learning is not...", "Deep learning is..."],
        "raw_scores": False,
    }

    documents: Texts = Field(
        description="The documents to score. Paths with the prefix /tei also accept the name documents.",
        validation_alias=AliasChoices("texts", "documents"),
    )


class Row(TypedDict):
    index: int
    score: float
    text: NotRequired[str]


def render(result: RerankResult, request_id: str) -> list[Row]:
    """Return the response JSON."""
    return rows(result, score="score", text="text")


class ErrorAnswer(TypedDict):
    error: str
    error_type: str


# TEI's error type for each status; all other errors are the client's: "Validation".
_TYPES = {429: "Overloaded", 502: "Backend", 503: "Unhealthy", 504: "Backend", 500: "Backend"}


def render_error(error: RerankdError) -> ErrorAnswer:
    """Render an error as TEI does."""
    return {"error": error.message, "error_type": _TYPES.get(error.status_hint, "Validation")}


DIALECT = Dialect(
    name="tei",
    title="Text Embeddings Inference",
    recognised_by="`texts`",
    answers_with="a list of all texts",
    recognises=lambda sent, on_own_path: "texts" in sent and "documents" not in sent,
    prefixes=("tei",),
    body=TeiBody,
    rules=Rules(
        own=("raw_scores", "return_text", "truncate", "truncation_direction"),
        unused={"top_n": "the response has a row for every text"},
        refused={"score_threshold": ALL_ROWS},
    ),
    render=render,
    render_error=render_error,
)
