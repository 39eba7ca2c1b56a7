"""What a dialect is, and what most of them have in common. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, get_type_hints

from pydantic import BaseModel, Field, ValidationError
from typing_extensions import TypedDict

from rerankd.api.dialects.lenient import Query, Texts
from rerankd.api.dialects.option_rules import Rules, request, schema
from rerankd.api.dialects.type_errors import sentence
from rerankd.domain import RerankRequest, RerankResult, ScoredDocument
from rerankd.errors import InvalidRequest, RerankdError

Render = Callable[[RerankResult, str], Any]


class Body(BaseModel):
    """What a client sends, beside the options (see options.py). Fields that it does not know are ignored;
    null means not sent. `EXAMPLE` is one that a client may send."""

    EXAMPLE: ClassVar[dict[str, Any]] = {}

    model: str | None = Field(None, description="any name, while one model is served")

    def requests(self, rules: Rules, value: Mapping[str, Any]) -> tuple[RerankRequest, ...]:
        """The requests that were sent, all to one model; most dialects send one. `value` is the whole body,
        with the options. Raises InvalidRequest."""
        raise NotImplementedError


class Question(Body):
    """A body with query, documents and options side by side."""

    query: Query = Field(description="The question.")
    documents: Texts = Field(description="The documents.")

    def requests(self, rules: Rules, value: Mapping[str, Any]) -> tuple[RerankRequest, ...]:
        return (request(rules, value, query=self.query, documents=self.documents, model=self.model),)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One way to ask and to answer. Routes, docs and the reference are made from these values."""

    name: str
    """The metrics' label."""
    title: str
    """Whose it is, for people; so are the next two."""
    told_by: str
    answers_with: str
    recognises: Callable[[Mapping[str, Any], bool], bool]
    """Whether it is asked: by a body's fields that are not null, and whether it came to one of `paths`."""
    paths: Mapping[str, str] = field(default_factory=dict)
    """Paths of its own -> whose they are; other bodies are taken there, too."""
    prefixes: Sequence[str] = ()
    """First parts of a path that name the dialect, such as voyage in /voyage/v1/rerank."""
    body: type[Body]
    rules: Rules
    render: Render
    """The JSON of an answer: of the result, in which several requests are one, and the request's id."""
    render_error: Callable[[RerankdError], Mapping[str, Any]]
    named_paths: tuple[str, ...] = field(init=False)
    """The paths that name this dialect, whatever the body."""
    own_paths: tuple[str, ...] = field(init=False)
    """`paths` without whose they are, as a request's path is held against them."""

    def __post_init__(self) -> None:
        paths = ("/rerank", "/v1/rerank", "/v2/rerank")
        named = tuple(f"/{prefix}{path}" for prefix in self.prefixes for path in paths)
        object.__setattr__(self, "named_paths", named)
        object.__setattr__(self, "own_paths", tuple(self.paths))

    @property
    def answer(self) -> Any:
        """The type of an answer."""
        return get_type_hints(self.render)["return"]

    @property
    def error(self) -> Any:
        """The type of an error."""
        return get_type_hints(self.render_error)["return"]

    def parse(self, value: dict[str, Any]) -> tuple[RerankRequest, ...]:
        """The requests in a JSON body; null is the same as not sent. Raises InvalidRequest."""
        try:
            read = self.body.model_validate({name: sent for name, sent in value.items() if sent is not None})
        except ValidationError as error:
            raise InvalidRequest(sentence(error, example=self.body.EXAMPLE)) from None
        return read.requests(self.rules, value)

    def schema(self) -> dict[str, Any]:
        """The JSON schema of the body, with the options and an example."""
        found = self.body.model_json_schema()
        found["properties"] |= schema(self.rules)
        return {**found, "example": self.body.EXAMPLE}


def joined(results: Sequence[RerankResult]) -> RerankResult:
    """The results of a body's requests as one, whose documents are numbered through.

    Each warning of several results says which pairs it is about. `cut`, `blank`, `errors` and `unscored` of
    several are left out: no answer to pairs has a place for them.
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


class PlainError(TypedDict):
    error: str


def plain_error(error: RerankdError) -> PlainError:
    """An error as a string, as several services say it."""
    return {"error": error.message}


def rows(result: RerankResult, *, score: str = "relevance_score", text: str = "document") -> list[Any]:
    """The rows of an answer, the best first; a document is in one only when it was asked for, and never as
    null."""
    return [
        {"index": scored.index, score: scored.score, **({} if scored.text is None else {text: scored.text})}
        for scored in result.results
    ]
