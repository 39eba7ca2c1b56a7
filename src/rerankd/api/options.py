"""The options of a rerank request, each written once: its names, its type and its meaning. Pure.

Clients name one option in many ways, and send what another service taught them. So every dialect reads every
option under each of its names. Null, and an empty string, is the same as not sent. Where several names of one
option are sent, the first one counts that differs from the default; a name that says otherwise is named in a
warning. So is an option that rerankd, the dialect or the model can't honour: it is never dropped in silence.
Fields that are no option of anybody are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError, WithJsonSchema

from rerankd.api.body import sentence
from rerankd.api.dialects import lenient
from rerankd.api.dialects.lenient import Count, Flag, Number, Whole
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest
from rerankd.scoring import plan


def _same(value: Any) -> Any:
    return value


def _inverse(value: bool) -> bool:
    return not value


def _or_none(value: float) -> float | None:
    """No bound is spelled 0, or -1."""
    return value if value > 0 else None


def _may_truncate(value: Any) -> bool:
    """true, false, or as NVIDIA and Cohere say it. Raises ValueError, and InvalidRequest for the start."""
    word = str(value).upper()
    if word in ("START", "LEFT"):
        _keeps_start(value)
    if word in ("NONE", "FALSE", "0"):
        return False
    if word in ("END", "RIGHT", "TRUE", "1"):
        return True
    raise ValueError('must be true, false, "NONE" or "END"')


def _keeps_start(value: str) -> str:
    """The side that is cut off. Raises ValueError, and InvalidRequest for the start."""
    word = value.lower()
    if word in ("left", "start"):
        raise InvalidRequest(
            f"The request asks to cut off the start of a text that is too long ({value!r}), but rerankd "
            "keeps the start. Leave the option out, or shorten the texts before you send them."
        )
    if word not in ("right", "end"):
        raise ValueError('must be "right"')
    return "right"


@dataclass(frozen=True, slots=True)
class Spelling:
    """A name of an option, the type of its JSON value, and what that value means for the option."""

    name: str
    kind: Any
    read: Callable[[Any], Any] = _same
    adapter: TypeAdapter[Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", TypeAdapter(self.kind))


@dataclass(frozen=True, slots=True)
class Option:
    """One option. `name` is RerankRequest's where that has it; `unused` says why rerankd never honours it."""

    name: str
    default: Any
    meaning: str
    spellings: tuple[Spelling, ...]
    unused: str = ""


_TRUNCATE = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": ["NONE", "END"]}]})]
_SIDE = Annotated[str, WithJsonSchema({"enum": ["right", "left"]})]
_ANY_WHOLE = Annotated[Any, WithJsonSchema({"type": "integer"})]
_ANY = Annotated[Any, WithJsonSchema({"type": ["string", "number"]})]

OPTIONS = (
    Option(
        "top_n",
        None,
        "Return the best N documents only; 0: all.",
        tuple(Spelling(name, Count, _or_none) for name in ("top_n", "top_k", "k", "limit")),
    ),
    Option(
        "return_documents",
        False,
        "Return each document's text beside its score.",
        tuple(Spelling(name, Flag) for name in ("return_documents", "return_text", "return_input")),
    ),
    Option(
        "score_threshold",
        None,
        "Leave out documents whose score (from 0 to 1, also with raw_scores) is lower. The order stays.",
        tuple(Spelling(name, Number, _or_none) for name in ("score_threshold", "min_score")),
    ),
    Option(
        "instruction",
        None,
        "What the model should judge by, for models that take an instruction.",
        tuple(
            Spelling(name, str)
            for name in ("instruction", "instruct", "task", "chat_template_kwargs.instruction")
        ),
    ),
    Option(
        "raw_scores",
        False,
        "Return the model's raw values instead of scores from 0 to 1: raw_scores or raw true, or normalize, "
        "use_activation or activation false.",
        (
            *(Spelling(name, Flag) for name in ("raw_scores", "raw")),
            *(Spelling(name, Flag, _inverse) for name in ("normalize", "use_activation", "activation")),
        ),
    ),
    Option(
        "truncate",
        True,
        'false, or "NONE": a document that is too long for the model is an error.',
        tuple(Spelling(name, _TRUNCATE, _may_truncate) for name in ("truncate", "truncation")),
    ),
    Option(
        "truncation_side",
        "right",
        "Which end of a text that is too long is cut off: the right one. The left one is refused.",
        tuple(Spelling(name, _SIDE, _keeps_start) for name in ("truncation_side", "truncation_direction")),
    ),
    Option(
        "max_tokens_per_doc",
        None,
        "Read at most N tokens of each document.",
        (Spelling("max_tokens_per_doc", Count, _or_none),),
    ),
    Option(
        "max_tokens_per_query",
        None,
        "Read at most N tokens of the query. Without it, a query that is too long is an error.",
        (Spelling("max_tokens_per_query", Count, _or_none),),
    ),
    Option(
        "max_tokens_per_pair",
        None,
        "Read at most N tokens of query and document together, as if that were the model's window; -1: all.",
        (Spelling("truncate_prompt_tokens", Whole, _or_none),),
    ),
    Option(
        "max_chunks_per_doc",
        1,
        "Read a long document in up to N chunks; its score is that of the best one.",
        (Spelling("max_chunks_per_doc", Count, lambda value: max(value, 1)),),
    ),
    Option(
        "overlap_tokens",
        0,
        "Tokens that a chunk shares with the one before it.",
        tuple(Spelling(name, Count) for name in ("overlap_tokens", "overlap")),
    ),
    Option(
        "rank_fields",
        (),
        "The fields of a document object that count.",
        (Spelling("rank_fields", list[str], tuple),),
    ),
    Option(
        "priority",
        0,
        "Not used: requests take turns.",
        (Spelling("priority", _ANY_WHOLE),),
        unused="requests take turns, none goes before the others",
    ),
    Option(
        "keep_alive",
        None,
        "Not used: the setting idle_unload_s says how long a model stays loaded.",
        (Spelling("keep_alive", _ANY),),
        unused="the setting idle_unload_s says how long a model stays loaded",
    ),
)
NAMES = frozenset(spelling.name for option in OPTIONS for spelling in option.spellings)
"""All names of all options."""

_OF_REQUEST = frozenset(RerankRequest.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Rules:
    """What is special about a dialect: the names that its own clients use (for the reference), options that
    it can't honour (`unused`: a warning with this reason) or must not (`refused`: an error with this reason),
    and defaults of its own."""

    own: Sequence[str] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


ALL_ROWS = "its clients assign scores by position, so each document must have one"
"""Why an answer's shape can leave no document out."""
NO_TEXTS = "the answer has no place for texts"


def request(
    rules: Rules,
    value: Mapping[str, Any],
    *,
    query: str | Mapping[str, Any],
    documents: Sequence[str | Mapping[str, Any]],
    model: str | None,
) -> RerankRequest:
    """The request of a JSON body `value` whose query and documents the dialect has read. Raises
    InvalidRequest."""
    asked, warnings = read(rules, value)
    unread = [at for at, document in enumerate(documents) if lenient.has_image(document)]
    if lenient.has_image(query):
        warnings += ("Images are not read: the query has one.",)
    if unread:
        warnings += (f"Images are not read: {plan.named(unread)}.",)
    found = RerankRequest(
        query=lenient.text(query, "The query"),
        documents=lenient.texts(documents, asked.pop("rank_fields", ())),
        model=model or None,
        warnings=warnings,
    )
    return replace(found, **{name: option for name, option in asked.items() if name in _OF_REQUEST})


def read(rules: Rules, value: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options of a JSON body that differ from RerankRequest's defaults, and warnings about those that are
    not honoured. Raises InvalidRequest."""
    asked: dict[str, Any] = dict(rules.defaults)
    warnings: list[str] = []
    for option in OPTIONS:
        default = rules.defaults.get(option.name, option.default)
        sent = {spelling.name: _read(spelling, value) for spelling in option.spellings}
        meant = {name: one for name, one in sent.items() if one is not None and one != default}
        if not meant:
            continue
        name, chosen = next(iter(meant.items()))
        if option.name in rules.refused:
            raise InvalidRequest(
                f"{name!r} can't be used in this dialect: {rules.refused[option.name]}. Leave it out, or "
                "send query and documents to /jina/v1/rerank, which can leave documents out."
            )
        warnings += [
            f"{other!r} is not used: {name!r} says otherwise."
            for other, one in meant.items()
            if one != chosen
        ]
        unused = option.unused or rules.unused.get(option.name)
        if unused:
            warnings.append(f"{name!r} is not used: {unused}.")
        else:
            asked[option.name] = chosen
    return asked, tuple(warnings)


def _read(spelling: Spelling, value: Mapping[str, Any]) -> Any:
    """What a name says; None where it was not sent. Raises InvalidRequest."""
    sent: Any = value
    for part in spelling.name.split("."):
        sent = sent.get(part) if isinstance(sent, Mapping) else None
    if sent is None or sent == "":
        return None
    try:
        valid = spelling.adapter.validate_python(sent)
    except ValidationError as error:
        raise InvalidRequest(sentence(error, spelling.name)) from None
    try:
        return None if valid is None else spelling.read(valid)
    except ValueError as error:
        raise InvalidRequest(f"{spelling.name!r} is {sent!r}, but {error}.") from None


def schema(rules: Rules) -> dict[str, Any]:
    """The options as properties of a JSON schema, each under the dialect's own name, or else our own."""
    found = {}
    for option in OPTIONS:
        names = [spelling.name for spelling in option.spellings]
        shown = next((one for one in option.spellings if one.name in rules.own), option.spellings[0])
        others = [name for name in names if name != shown.name]
        meaning = option.meaning
        if option.name in rules.refused:
            meaning += f" Refused here: {rules.refused[option.name]}."
        elif option.name in rules.unused:
            meaning += f" Not used here: {rules.unused[option.name]}."
        if others:
            meaning += f" Also named {', '.join(others)}."
        found[shown.name] = {**shown.adapter.json_schema(), "description": meaning}
    return found
