"""The options of a rerank request in all dialects: names, JSON type and description of each. Pure.

Services use different names for the same option, and clients send the names of a service other than the one
they call. So every dialect accepts every option under each of its names (see option_rules.py): one entry in
`OPTIONS` adds an option to all dialects.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, cast, get_args

from pydantic import TypeAdapter, WithJsonSchema

from rerankd.api.dialects.keep_alive import keep_alive_s
from rerankd.api.dialects.lenient import Count, Flag, Number, Whole
from rerankd.domain import Priority, RerankRequest, TruncateAt
from rerankd.errors import InvalidRequest


def _same(value: Any) -> Any:
    return value


def _or_none(value: float) -> float | None:
    """0 and -1 mean no limit."""
    return value if value > 0 else None


def _may_truncate(value: Any) -> bool:
    """Read true, false, or NVIDIA's and Cohere's words. Raises ValueError, and InvalidRequest for "START"."""
    word = str(value).upper()
    if word in ("START", "LEFT"):
        _keeps_start(value)
    if word in ("NONE", "FALSE", "0"):
        return False
    if word in ("END", "RIGHT", "TRUE", "1"):
        return True
    raise ValueError('must be true, false, "NONE" or "END"')


def _keeps_start(value: str) -> str:
    """Return the side that is truncated. Raises ValueError, and InvalidRequest for the left side."""
    word = value.lower()
    if word in ("left", "start"):
        raise InvalidRequest(
            f'The request asks to truncate texts at the start ("{value}"), but rerankd truncates at the end '
            "and keeps the start. Remove the option, or shorten the texts before you send them."
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
    """Read a word, or a number as in vLLM and Cohere, where lower numbers come first. Raises ValueError."""
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
    """One name of an option, the type of its JSON value, and the conversion to the option's value."""

    name: str
    kind: Any
    read: Callable[[Any], Any] = _same
    adapter: TypeAdapter[Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapter", TypeAdapter(self.kind))


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    `name` and `default` are those of RerankRequest if it has the field. `unused` is the reason why rerankd
    always ignores the option. `header` is a request header that sets it; the body takes precedence.
    """

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
        "Return only the N documents with the highest scores. 0: all documents.",
        _named("top_n", "top_k", "k", "limit", kind=Count, read=_or_none),
    ),
    Option(
        "return_documents",
        "Include the text of each document in the response.",
        _named("return_documents", "return_text", "return_input", kind=Flag),
    ),
    Option(
        "score_threshold",
        "Omit documents whose normalized score (0 to 1, also with raw_scores) is lower than this value.",
        _named("score_threshold", "min_score", kind=Number, read=_or_none),
    ),
    Option(
        "instruction",
        "An instruction that tells the model what counts as relevant, for models that support one.",
        _named("instruction", "instruct", "task", "chat_template_kwargs.instruction", kind=str),
    ),
    Option(
        "raw_scores",
        "Return raw scores instead of normalized scores (0 to 1). Set raw_scores or raw to true, or "
        "normalize, use_activation or activation to false.",
        _named("raw_scores", "raw", kind=Flag)
        + _named("normalize", "use_activation", "activation", kind=Flag, read=operator.not_),
    ),
    Option(
        "truncate",
        'Truncate documents that are too long for the model (the default). With false or "NONE", such a '
        "document is an error.",
        _named("truncate", "truncation", kind=_TRUNCATE, read=_may_truncate),
    ),
    Option(
        "truncation_side",
        'The end at which long texts are truncated. Only "right" is supported; "left" is an error.',
        _named("truncation_side", "truncation_direction", kind=_SIDE, read=_keeps_start),
        default="right",
    ),
    Option(
        "truncate_at",
        'Where a long text is truncated: "token", after the last token that fits, or "sentence", at the end '
        "of the last whole sentence, if one ends near that token.",
        _named("truncate_at", kind=_END, read=_ends_at),
    ),
    Option(
        "truncate_query",
        "Truncate a query that is too long for the model, with a warning. With false, such a query is an "
        "error.",
        _named("truncate_query", kind=Flag),
    ),
    Option(
        "max_tokens_per_doc",
        "Truncate each document to at most N tokens. 0: no limit.",
        _named("max_tokens_per_doc", kind=Count, read=_or_none),
    ),
    Option(
        "max_tokens_per_query",
        "Truncate the query to at most N tokens. 0: no limit.",
        _named("max_tokens_per_query", kind=Count, read=_or_none),
    ),
    Option(
        "max_tokens_per_pair",
        "Use at most N tokens for query and document together, as if N were the max_length of the model. "
        "-1: no limit.",
        _named("truncate_prompt_tokens", kind=Whole, read=_or_none),
    ),
    Option(
        "max_chunks_per_doc",
        "Split a long document into up to N chunks. Its score is the score of the best chunk.",
        _named("max_chunks_per_doc", kind=Count, read=lambda value: max(value, 1)),
    ),
    Option(
        "overlap_tokens",
        "The number of tokens that a chunk shares with the previous chunk.",
        _named("overlap_tokens", "overlap", kind=Count),
    ),
    Option(
        "rank_fields",
        "For documents that are objects: the names of the fields to score.",
        _named("rank_fields", kind=list[str], read=tuple),
        default=(),
    ),
    Option(
        "priority",
        'The weight of the request among the requests of the same client: "low", "normal", "high", or a '
        'whole number (below 0: high, above 0: low). A "low" request also yields to other clients.',
        _named("priority", kind=_PRIORITY, read=_priority),
        header="x-rerank-priority",
    ),
    Option(
        "budget_ms",
        "Time budget for scoring in milliseconds. Documents are scored in the order sent; those that are not "
        "scored in time are ranked last. 0: no limit.",
        _named("budget_ms", kind=Count),
        header="x-rerank-budget-ms",
    ),
    Option(
        "max_scored_documents",
        "Score only the first N documents, including blank ones; the rest are ranked last. 0: all documents.",
        _named("max_scored_documents", kind=Count, read=_or_none),
    ),
    Option(
        "keep_alive_s",
        'How long the model stays loaded after its last request: seconds, or a duration such as "5m" or '
        '"1h30m". 0: unload it now. -1: never. It replaces idle_unload_s until the model is unloaded.',
        _named("keep_alive", kind=_ANY, read=keep_alive_s),
    ),
)
