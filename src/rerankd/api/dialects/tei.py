"""Text Embeddings Inference's dialect: `texts` in, a bare list of all of them out, best first. Pure."""

from __future__ import annotations

from typing import Any, ClassVar, NotRequired

from pydantic import AliasChoices, Field
from typing_extensions import TypedDict

from rerankd.api.dialects.dialect import Dialect, Question, rows
from rerankd.api.dialects.lenient import Texts
from rerankd.api.dialects.option_rules import ALL_ROWS, Rules
from rerankd.domain import RerankResult
from rerankd.errors import RerankdError


class TeiBody(Question):
    """What a client sends, beside the options. All texts are answered: its clients count the rows."""

    EXAMPLE: ClassVar[dict[str, Any]] = {
        "query": "What is Deep Learning?",
        "texts": ["Deep Learning is not...", "Deep learning is..."],
        "raw_scores": False,
    }

    documents: Texts = Field(
        description="The documents; below /tei also named documents.",
        validation_alias=AliasChoices("texts", "documents"),
    )


class Row(TypedDict):
    index: int
    score: float
    text: NotRequired[str]


def render(result: RerankResult, request_id: str) -> list[Row]:
    """The JSON of an answer."""
    return rows(result, score="score", text="text")


class ErrorAnswer(TypedDict):
    error: str
    error_type: str


# What TEI calls the errors of a status; all others are the caller's, and "Validation".
_TYPES = {429: "Overloaded", 502: "Backend", 503: "Unhealthy", 504: "Backend", 500: "Backend"}


def render_error(error: RerankdError) -> ErrorAnswer:
    """An error as TEI says it."""
    return {"error": error.message, "error_type": _TYPES.get(error.status_hint, "Validation")}


DIALECT = Dialect(
    name="tei",
    title="Text Embeddings Inference",
    told_by="`texts`",
    answers_with="a list of all texts",
    recognises=lambda sent, at_home: "texts" in sent and "documents" not in sent,
    prefixes=("tei",),
    body=TeiBody,
    rules=Rules(
        own=("raw_scores", "return_text", "truncate", "truncation_direction"),
        unused={"top_n": "every text gets a row"},
        refused={"score_threshold": ALL_ROWS},
    ),
    render=render,
    render_error=render_error,
)
