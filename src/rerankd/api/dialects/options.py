"""The options of a rerank request, each written once: its names, its type and its meaning. Pure.

Clients name one option in many ways, and send what another service taught them. So every dialect reads every
option under each of its names (see option_rules.py): a line of `OPTIONS` is an option of all dialects.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, cast, get_args

from pydantic import TypeAdapter, WithJsonSchema

from rerankd.api.dialects.lenient import Count, Flag, Number, Whole
from rerankd.domain import Priority, RerankRequest, TruncateAt
from rerankd.errors import InvalidRequest


def _same(value: Any) -> Any:
    return value


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


def _ends_at(value: str) -> str:
    """Raises ValueError."""
    if value.lower() not in get_args(TruncateAt):
        raise ValueError('must be "token" or "sentence"')
    return value.lower()


def _priority(value: Any) -> Priority:
    """A word, or as vLLM and Cohere have it a number, of which a lower one goes first. Raises ValueError."""
    word = str(value).strip().lower()
    for name in get_args(Priority):
        if word == name:
            return cast(Priority, name)
    if isinstance(value, str) and re.fullmatch(r"[+-]?[0-9]{1,20}", word):
        value = int(word)
    if type(value) is not int:
        raise ValueError('must be "low", "normal", "high" or a whole number (below 0: high, above 0: low)')
    return "high" if value < 0 else "low" if value else "normal"


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
    """One option. `name` and `default` are RerankRequest's where that has it; `unused` says why rerankd never
    honours it. `header` may have it, too; what the body says counts more."""

    name: str
    meaning: str
    spellings: tuple[Spelling, ...]
    default: Any = None
    unused: str = ""
    header: str = ""

    def __post_init__(self) -> None:
        if known := RerankRequest.__dataclass_fields__.get(self.name):
            object.__setattr__(self, "default", known.default)


def _named(*names: str, kind: Any, read: Callable[[Any], Any] = _same) -> tuple[Spelling, ...]:
    return tuple(Spelling(name, kind, read) for name in names)


_TRUNCATE = Annotated[Any, WithJsonSchema({"anyOf": [{"type": "boolean"}, {"enum": ["NONE", "END"]}]})]
_SIDE = Annotated[str, WithJsonSchema({"enum": ["right", "left"]})]
_END = Annotated[str, WithJsonSchema({"enum": list(get_args(TruncateAt))})]
_PRIORITY = Annotated[
    Any, WithJsonSchema({"anyOf": [{"enum": list(get_args(Priority))}, {"type": "integer"}]})
]
_ANY = Annotated[Any, WithJsonSchema({"type": ["string", "number"]})]

OPTIONS = (
    Option(
        "top_n",
        "Return the best N documents only; 0: all.",
        _named("top_n", "top_k", "k", "limit", kind=Count, read=_or_none),
    ),
    Option(
        "return_documents",
        "Return each document's text beside its score.",
        _named("return_documents", "return_text", "return_input", kind=Flag),
    ),
    Option(
        "score_threshold",
        "Leave out documents whose score (from 0 to 1, also with raw_scores) is lower. The order stays.",
        _named("score_threshold", "min_score", kind=Number, read=_or_none),
    ),
    Option(
        "instruction",
        "What the model should judge by, for models that take an instruction.",
        _named("instruction", "instruct", "task", "chat_template_kwargs.instruction", kind=str),
    ),
    Option(
        "raw_scores",
        "Return the model's raw values instead of scores from 0 to 1: raw_scores or raw true, or normalize, "
        "use_activation or activation false.",
        _named("raw_scores", "raw", kind=Flag)
        + _named("normalize", "use_activation", "activation", kind=Flag, read=operator.not_),
    ),
    Option(
        "truncate",
        'false, or "NONE": a document that is too long for the model is an error.',
        _named("truncate", "truncation", kind=_TRUNCATE, read=_may_truncate),
    ),
    Option(
        "truncation_side",
        "Which end of a text that is too long is cut off: the right one. The left one is refused.",
        _named("truncation_side", "truncation_direction", kind=_SIDE, read=_keeps_start),
        default="right",
    ),
    Option(
        "truncate_at",
        'Where a text that is too long ends: "token", at the last token that fits, or "sentence", at the end '
        "of a sentence where one is near.",
        _named("truncate_at", kind=_END, read=_ends_at),
    ),
    Option(
        "truncate_query",
        "true: a query that is too long for the model is cut off, with a warning; otherwise it is an error.",
        _named("truncate_query", kind=Flag),
    ),
    Option(
        "max_tokens_per_doc",
        "Read at most N tokens of each document.",
        _named("max_tokens_per_doc", kind=Count, read=_or_none),
    ),
    Option(
        "max_tokens_per_query",
        "Read at most N tokens of the query.",
        _named("max_tokens_per_query", kind=Count, read=_or_none),
    ),
    Option(
        "max_tokens_per_pair",
        "Read at most N tokens of query and document together, as if that were the model's window; -1: all.",
        _named("truncate_prompt_tokens", kind=Whole, read=_or_none),
    ),
    Option(
        "max_chunks_per_doc",
        "Read a long document in up to N chunks; its score is that of the best one.",
        _named("max_chunks_per_doc", kind=Count, read=lambda value: max(value, 1)),
    ),
    Option(
        "overlap_tokens",
        "Tokens that a chunk shares with the one before it.",
        _named("overlap_tokens", "overlap", kind=Count),
    ),
    Option(
        "rank_fields",
        "The fields of a document object that count.",
        _named("rank_fields", kind=list[str], read=tuple),
        default=(),
    ),
    Option(
        "priority",
        '"low", "normal" or "high", or a whole number (below 0: high, above 0: low): how the request weighs '
        'against others of the same client. A "low" one also lets other clients go first.',
        _named("priority", kind=_PRIORITY, read=_priority),
        header="x-rerank-priority",
    ),
    Option(
        "budget_ms",
        "Milliseconds for scoring: documents are scored in the order sent until the time ends; the others "
        "come last. 0: no limit.",
        _named("budget_ms", kind=Count),
        header="x-rerank-budget-ms",
    ),
    Option(
        "max_scored_documents",
        "Score only the first N documents, blank ones counted; the others come last. 0: all.",
        _named("max_scored_documents", kind=Count, read=_or_none),
    ),
    Option(
        "keep_alive",
        "Not used: the setting idle_unload_s says how long a model stays loaded.",
        _named("keep_alive", kind=_ANY),
        unused="the setting idle_unload_s says how long a model stays loaded",
    ),
)
