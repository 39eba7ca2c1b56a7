"""Read the options of a request body: several names for one option, unsupported options, headers. Pure.

Null and an empty string mean that an option was not sent. If a body has several names of one option, the
first value that differs from the default is used, and a warning lists the names with other values. An option
that rerankd, the dialect or the model does not support causes a warning or an error; it is never dropped
silently. Unknown fields are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from rerankd.api.dialects import images, options
from rerankd.api.dialects.type_errors import kind, sentence
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest

_OF_REQUEST = frozenset(RerankRequest.__dataclass_fields__)


@dataclass(frozen=True, slots=True)
class Rules:
    """How a dialect differs from the others in its options.

    `own` lists the names that its own clients use, for the reference. `unused` options are ignored with a
    warning, `refused` options are an error; both map to the reason. `defaults` replace those of
    RerankRequest.
    """

    own: Sequence[str] = ()
    unused: Mapping[str, str] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)


ALL_ROWS = "its clients assign scores by position, so every document must have a score"
"""Why a response can't omit documents."""
NO_TEXTS = "the response has no field for texts"


def request(
    rules: Rules,
    value: Mapping[str, Any],
    *,
    query: str | Mapping[str, Any],
    documents: Sequence[str | Mapping[str, Any]],
    model: str | None,
) -> RerankRequest:
    """Build the request from the JSON body `value` and the query and documents that the dialect has read.

    Raises InvalidRequest.
    """
    wanted, warnings = _options(rules, value)
    plain = RerankRequest(
        query=images.content(query, "The query"),
        documents=images.contents(documents, wanted.pop("rank_fields", ())),
        model=model or None,
        warnings=warnings,
    )
    return replace(plain, **{name: option for name, option in wanted.items() if name in _OF_REQUEST})


def _options(rules: Rules, value: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the options that differ from RerankRequest's defaults, and warnings about the ignored ones.

    Raises InvalidRequest.
    """
    wanted: dict[str, Any] = dict(rules.defaults)
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
                f"{name!r} is not supported in this dialect: {rules.refused[option.name]}. Remove it, or "
                "send query and documents to /jina/v1/rerank, whose response can omit documents."
            )
        warnings += [
            f"{other!r} is ignored: {name!r} has a different value."
            for other, one in meant.items()
            if one != chosen
        ]
        unused = option.unused or rules.unused.get(option.name)
        if unused:
            warnings.append(f"{name!r} is ignored: {unused}.")
        else:
            wanted[option.name] = chosen
    return wanted, tuple(warnings)


def with_headers(value: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any]:
    """Return the JSON body plus the options that only the headers set. Raises InvalidRequest."""
    found = dict(value)
    for option in options.OPTIONS:
        sent = headers.get(option.header, "") if option.header else ""
        if sent and all(_read(spelling, value) is None for spelling in option.spellings):
            name = option.spellings[0].name
            try:
                _read(option.spellings[0], {name: sent})
            except InvalidRequest as error:
                message = error.message.removeprefix(f"{name!r} ")
                raise InvalidRequest(f"The header {option.header} {message}") from None
            found[name] = sent
    return found


def _read(spelling: options.Spelling, value: Mapping[str, Any]) -> Any:
    """Return the option's value under this name, or None if it was not sent. Raises InvalidRequest."""
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
        raise InvalidRequest(f"{spelling.name!r} is {kind(sent)}, but {error}.") from None


def schema(rules: Rules) -> dict[str, Any]:
    """Return the options as JSON schema properties, under the dialect's own names if it has some."""
    found = {}
    for option in options.OPTIONS:
        shown = next((one for one in option.spellings if one.name in rules.own), option.spellings[0])
        others = [spelling.name for spelling in option.spellings if spelling is not shown]
        meaning = option.meaning
        if option.name in rules.refused:
            meaning += f" Not supported in this dialect: {rules.refused[option.name]}."
        elif option.name in rules.unused:
            meaning += f" Ignored in this dialect: {rules.unused[option.name]}."
        if option.header:
            meaning += f" Header: {option.header}."
        if others:
            meaning += f" Other names: {', '.join(others)}."
        found[shown.name] = {**shown.adapter.json_schema(), "description": meaning}
    return found
