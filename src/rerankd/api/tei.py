"""Text Embeddings Inference's dialect: `texts` in, a bare list of all of them out, best first. Pure."""

from __future__ import annotations

from typing import Any, NotRequired

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from rerankd.api import lenient
from rerankd.api.body import check
from rerankd.api.lenient import Flag, Query, Texts
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import InvalidRequest, RerankdError


class Body(lenient.Body):
    """What a client sends. All texts are answered: its clients count the rows."""

    model_config = ConfigDict(title="TeiBody", json_schema_extra={"example": {
        "query": "What is Deep Learning?",
        "texts": ["Deep Learning is not...", "Deep learning is..."],
        "raw_scores": False,
    }})  # fmt: skip

    query: Query = Field(description="the question")
    texts: Texts = Field(description="the documents")
    raw_scores: Flag = Field(None, description="true: the model's raw values, not 0 to 1")
    return_text: Flag = Field(None, description="whether the texts come back with the scores")
    truncate: Flag = Field(None, description="false: a text too long for the model is an error")
    truncation_direction: str | None = Field(None, description="Right; a text's start is what is kept")


def parse(value: dict[str, Any]) -> RerankRequest:
    """The request in a JSON body. Raises InvalidRequest."""
    body = check(Body, value)
    if (body.truncation_direction or "").lower() == "left":
        raise InvalidRequest(
            "'truncation_direction' is Left, but rerankd keeps the start of a text that is too long. Leave "
            "it out, or cut the texts before you send them."
        )
    return RerankRequest(
        query=lenient.text(body.query, "The query"),
        documents=lenient.texts(body.texts),
        model=body.model or None,
        return_documents=bool(body.return_text),
        truncate=body.truncate is not False,
        raw_scores=bool(body.raw_scores),
    )


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
