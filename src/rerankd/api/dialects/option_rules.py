"""What a dialect makes of the options in a body. Pure.

Null, and an empty string, is the same as not sent. Where several names of one option are sent, the first one
counts that differs from the default; a name that says otherwise is named in a warning. So is an option that
rerankd, the dialect or the model can't honour: it is never dropped in silence. Fields that are no option of
anybody are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from rerankd.api.dialects import lenient, options
from rerankd.api.dialects.type_errors import sentence
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest
from rerankd.scoring import deduplicate

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
    asked, warnings = _options(rules, value)
    unread = [at for at, document in enumerate(documents) if lenient.has_image(document)]
    if lenient.has_image(query):
        warnings += ("Images are not read: the query has one.",)
    if unread:
        warnings += (f"Images are not read: {deduplicate.named(unread)}.",)
    found = RerankRequest(
        query=lenient.text(query, "The query"),
        documents=lenient.texts(documents, asked.pop("rank_fields", ())),
        model=model or None,
        warnings=warnings,
    )
    return replace(found, **{name: option for name, option in asked.items() if name in _OF_REQUEST})


def _options(rules: Rules, value: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The options of a JSON body that differ from RerankRequest's defaults, and warnings about those that are
    not honoured. Raises InvalidRequest."""
    asked: dict[str, Any] = dict(rules.defaults)
    warnings: list[str] = []
    for option in options.OPTIONS:
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


def with_headers(value: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """A JSON body, with the options that stand in headers and not in the body. Raises InvalidRequest."""
    found = dict(value)
    for option in options.OPTIONS:
        sent = headers.get(option.header, "") if option.header else ""
        if sent and all(_read(spelling, value) is None for spelling in option.spellings):
            name = option.spellings[0].name
            try:
                _read(option.spellings[0], {name: sent})
            except InvalidRequest as error:
                raise InvalidRequest(f"The header {option.header}: {error.message}") from None
            found[name] = sent
    return found


def _read(spelling: options.Spelling, value: Mapping[str, Any]) -> Any:
    """What a name says; None where it was not sent. Raises InvalidRequest."""
    sent: Any = value
    for part in spelling.name.split("."):
        sent = sent.get(part) if isinstance(sent, Mapping) else None
    if sent is None or sent == "":
        return None
    try:
        valid = spelling.adapter.validate_python(sent)
        return None if valid is None else spelling.read(valid)
    except ValidationError as error:
        raise InvalidRequest(sentence(error, spelling.name)) from None
    except ValueError as error:
        raise InvalidRequest(f"{spelling.name!r} is {sent!r:.80}, but {error}.") from None


def schema(rules: Rules) -> dict[str, Any]:
    """The options as properties of a JSON schema, each under the dialect's own name, or else our own."""
    found = {}
    for option in options.OPTIONS:
        shown = next((one for one in option.spellings if one.name in rules.own), option.spellings[0])
        others = [spelling.name for spelling in option.spellings if spelling is not shown]
        meaning = option.meaning
        if option.name in rules.refused:
            meaning += f" Refused here: {rules.refused[option.name]}."
        elif option.name in rules.unused:
            meaning += f" Not used here: {rules.unused[option.name]}."
        if option.header:
            meaning += f" Also as the header {option.header}."
        if others:
            meaning += f" Also named {', '.join(others)}."
        found[shown.name] = {**shown.adapter.json_schema(), "description": meaning}
    return found
