"""A dialect: one service's request, response and error format; and the code that dialects share. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NotRequired, get_type_hints

from pydantic import BaseModel, Field, ValidationError
from typing_extensions import TypedDict

from rerankd.api.dialects.lenient import Query, Texts
from rerankd.api.dialects.option_rules import Rules, request, schema
from rerankd.api.dialects.type_errors import sentence
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest, RerankdError
from rerankd.rerank_result import RerankResult, ScoredDocument

Render = Callable[[RerankResult, str], Any]


class Body(BaseModel):
    """The request body without the options (see options.py).

    Unknown fields are ignored; null means that the field was not sent. `EXAMPLE` is a valid body.
    """

    EXAMPLE: ClassVar[dict[str, Any]] = {}

    model: str | None = Field(
        None, description="Name of the model. While only one model is served, any name is accepted."
    )

    def requests(self, rules: Rules, value: Mapping[str, Any]) -> tuple[RerankRequest, ...]:
        """Return the requests in this body, all for one model; most dialects send one.

        `value` is the whole body with the options. Raises InvalidRequest.
        """
        raise NotImplementedError


class Question(Body):
    """A body with query, documents and options at the top level."""

    query: Query = Field(description="The query, usually a question.")
    documents: Texts = Field(description="The documents to score.")

    def requests(self, rules: Rules, value: Mapping[str, Any]) -> tuple[RerankRequest, ...]:
        return (request(rules, value, query=self.query, documents=self.documents, model=self.model),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """A request and response format. Routes, documentation and openapi.json are made from these values."""

    name: str
    """The label in the metrics."""
    title: str
    """The service that defines the dialect, as the documentation names it."""
    recognised_by: str
    """What identifies a request, for the documentation."""
    answers_with: str
    """What identifies a response, for the documentation."""
    recognises: Callable[[Mapping[str, Any], bool], bool]
    """Whether a request is in this dialect, by its non-null fields and whether its path is in `paths`."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """The service's own paths -> who uses them. Bodies of other dialects are accepted there too."""
    prefixes: Sequence[str] = ()
    """Path prefixes that select the dialect, such as voyage in /voyage/v1/rerank."""
    body: type[Body]
    rules: Rules
    render: Render
    """Return the response JSON for a result (several requests joined into one) and a request id."""
    render_error: Callable[[RerankdError], Mapping[str, Any]]
    named_paths: tuple[str, ...] = field(init=False)
    """The paths that select this dialect whatever the body."""
    own_paths: tuple[str, ...] = field(init=False)
    """The keys of `paths`, as a tuple for str.endswith."""

    def __post_init__(self) -> None:
        paths = ("/rerank", "/v1/rerank", "/v2/rerank")
        named = tuple(f"/{prefix}{path}" for prefix in self.prefixes for path in paths)
        object.__setattr__(self, "named_paths", named)
        object.__setattr__(self, "own_paths", tuple(self.paths))

    @property
    def answer(self) -> Any:
        """The type of the response."""
        return get_type_hints(self.render)["return"]

    @property
    def error(self) -> Any:
        """The type of the error response."""
        return get_type_hints(self.render_error)["return"]

    def parse(self, value: dict[str, Any]) -> tuple[RerankRequest, ...]:
        """Return the requests in a JSON body; null means that a field was not sent. Raises InvalidRequest."""
        try:
            read = self.body.model_validate({name: sent for name, sent in value.items() if sent is not None})
        except ValidationError as error:
            raise InvalidRequest(sentence(error, example=self.body.EXAMPLE)) from None
        return read.requests(self.rules, value)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of the body, with the options and an example."""
        whole = self.body.model_json_schema()
        whole["properties"] |= schema(self.rules)
        return {**whole, "example": self.body.EXAMPLE}


def joined(results: Sequence[RerankResult]) -> RerankResult:
    """Join the results of one body's requests into one result with consecutive document indexes.

    With several results, each warning names its pairs, and `cut`, `blank`, `errors` and `unscored` are
    omitted: no response to pairs has a field for them.
    """
    if len(results) == 1:
        return results[0]
    scored: list[ScoredDocument] = []
    warnings: list[str] = []
    for result in results:
        start = len(scored)
        scored += [replace(one, index=start + one.index) for one in result.results]
        warnings += [f"Pairs {start} to {len(scored) - 1}: {warning}" for warning in result.warnings]
    sums = ("tokens", "cached", "cached_tokens", "queue_s", "engine_s", "total_s")
    return RerankResult(
        model=results[0].model,
        results=tuple(scored),
        normalization=results[0].normalization,
        warnings=tuple(warnings),
        **{name: sum(getattr(result, name) for result in results) for name in sums},
    )


class Stage(TypedDict):
    """What a stage of a cascade did. `documents` reached it, and `scored` of them got a score. `skipped` were
    left out by its `margin`; `error` says why it scored nothing."""

    model: str
    documents: int
    scored: int
    ms: float
    queue_ms: float
    engine_ms: float
    tokens: int
    cached: NotRequired[int]
    skipped: NotRequired[int]
    error: NotRequired[str]


def stages(result: RerankResult) -> list[Stage]:
    """Return the stages of a cascade's answer, [] for a model alone."""
    found: list[Stage] = []
    for stage in result.stages:
        row: Stage = {
            "model": stage.model,
            "documents": stage.documents,
            "scored": stage.scored,
            "ms": round(stage.total_s * 1000, 1),
            "queue_ms": round(stage.queue_s * 1000, 1),
            "engine_ms": round(stage.engine_s * 1000, 1),
            "tokens": stage.tokens,
        }
        if stage.cached:
            row["cached"] = stage.cached
        if stage.skipped:
            row["skipped"] = stage.skipped
        if stage.error:
            row["error"] = stage.error
        found.append(row)
    return found


class PlainError(TypedDict):
    error: str


def plain_error(error: RerankdError) -> PlainError:
    """Render an error as one string, as several services do."""
    return {"error": error.message}


def rows(result: RerankResult, *, score: str = "relevance_score", text: str = "document") -> list[Any]:
    """Return the rows of a response, the best first. A row has the document only if the request asked for it;
    it is never null."""
    return [
        {"index": scored.index, score: scored.score, **({} if scored.text is None else {text: scored.text})}
        for scored in result.results
    ]
