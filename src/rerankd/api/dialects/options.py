"""The options of a rerank request, each written once: its names, its type and its meaning. Pure.

Clients name one option in many ways, and send what another service taught them. So every dialect reads every
option under each of its names (see rules.py): a line of `OPTIONS` is an option of all dialects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import TypeAdapter, WithJsonSchema

from rerankd.api.dialects.lenient import Count, Flag, Number, Whole
from rerankd.errors import InvalidRequest


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
