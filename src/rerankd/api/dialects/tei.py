"""Text Embeddings Inference's dialect: `texts` in, a bare list of all of them out, best first. Pure."""

from __future__ import annotations

from typing import Any, ClassVar, NotRequired

from pydantic import AliasChoices, ConfigDict, Field
from typing_extensions import TypedDict

from rerankd.api import options
from rerankd.api.body import check
from rerankd.api.dialects import lenient
from rerankd.api.dialects.lenient import Query, Texts
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import RerankdError

RULES = options.Rules(
    own=("raw_scores", "return_text", "truncate", "truncation_direction"),
    unused={"top_n": "every text gets a row"},
    refused={"score_threshold": options.ALL_ROWS},
)


class Body(lenient.Body):
    """What a client sends, beside the options. All texts are answered: its clients count the rows."""

    model_config = ConfigDict(title="TeiBody")
    EXAMPLE: ClassVar[dict[str, Any]] = {
        "query": "What is Deep Learning?",
        "texts": ["Deep Learning is not...", "Deep learning is..."],
        "raw_scores": False,
    }

    query: Query = Field(description="The question.")
    texts: Texts = Field(
        description="The documents; below /tei also named documents.",
        validation_alias=AliasChoices("texts", "documents"),
    )


def parse(value: dict[str, Any]) -> RerankRequest:
    """The request in a JSON body. Raises InvalidRequest."""
    body = check(Body, value)
    return options.request(RULES, value, query=body.query, documents=body.texts, model=body.model)


class Row(TypedDict):
    index: int
    score: float
    text: NotRequired[str]


def render(result: RerankResult, request_id: str) -> list[Row]:
    """The JSON of an answer."""
    rows: list[Row] = []
    for scored in result.results:
        row: Row = {"index": scored.index, "score": scored.score}
        if scored.text is not None:
            row["text"] = scored.text
        rows.append(row)
    return rows


class ErrorAnswer(TypedDict):
    error: str
    error_type: str


# What TEI calls the errors of a status; all others are the caller's, and "Validation".
_TYPES = {429: "Overloaded", 502: "Backend", 503: "Unhealthy", 504: "Backend", 500: "Backend"}


def render_error(error: RerankdError) -> ErrorAnswer:
    """An error as TEI says it."""
    return {"error": error.message, "error_type": _TYPES.get(error.status_hint, "Validation")}
