"""Input formats that every dialect accepts: documents as objects, flags and numbers as strings.

A document or a query is a string or an object:

- `{"text": …}`, `{"page_content": …}` (LangChain) and `{"content": …}`: this text.
- `{"content": [{"type": "text", "text": …}, …]}`: the text parts. Images: see images.py.
- any other object: its fields as `key: value` lines, or only those that `rank_fields` names.

A flag or a number may be sent as a string ("true", "3"). Null and an empty string mean that it was not sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from rerankd.errors import InvalidRequest


def _blank_is_null(value: object) -> object:
    return None if value == "" else value


def _count(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number")
    return _blank_is_null(value)


def _number(value: object) -> object:
    if isinstance(value, bool) or str(value).strip().lower().lstrip("+-") in ("nan", "inf", "infinity"):
        raise ValueError("must be a number")
    return value


def _string_or_object(value: object) -> object:
    if not isinstance(value, str | dict):
        raise ValueError('must be a string or an object like {"text": …}')
    return value


def _listed(value: object) -> object:
    return value if isinstance(value, list) else [value]


Flag = Annotated[bool | None, BeforeValidator(_blank_is_null)]
Count = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_count)]
Whole = Annotated[Annotated[int, Field(ge=-1)], BeforeValidator(_count)]
Number = Annotated[Annotated[float, Field(allow_inf_nan=False)], BeforeValidator(_number)]
_TEXT_NAMES = ("text", "page_content", "content")
# These schemas are only for openapi.json: code elsewhere rejects empty values with a clearer message.
_OBJECT = {"type": "object", "minProperties": 1}
_TEXT = {"anyOf": [{"type": "string"}, _OBJECT]}
_MANY = {"type": "array", "items": _TEXT, "minItems": 1}
Text = Annotated[str | dict[str, Any], BeforeValidator(_string_or_object), WithJsonSchema(_TEXT)]
Query = Annotated[Text, WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1}, _OBJECT]})]
Texts = Annotated[list[Text], WithJsonSchema(_MANY)]
OneOrMore = Annotated[
    list[Text], BeforeValidator(_listed), WithJsonSchema({"anyOf": [{"type": "string"}, _OBJECT, _MANY]})
]


def text(value: str | Mapping[str, Any], place: str, rank_fields: Sequence[str] = ()) -> str:
    """Return the text of `value`; `place` names it in the error message.

    Raises InvalidRequest for an object without text.
    """
    if isinstance(value, str):
        return value
    if rank_fields:
        return _fields(value, place, rank_fields)
    if (found := named_text(value)) is not None:
        return found
    if isinstance(parts := value.get("content"), list):
        return _joined(parts, place)
    if value.keys() <= {"image", "type"}:
        raise InvalidRequest(f'{place} is empty. Send a string, {{"text": …}} or {{"image": …}}.')
    return _lines(value, place)


def named_text(value: Mapping[str, Any]) -> str | None:
    """Return an object's `text`, `page_content` (LangChain) or `content`; None if none is a string."""
    return next((value[name] for name in _TEXT_NAMES if isinstance(value.get(name), str)), None)


def _fields(value: Mapping[str, Any], place: str, names: Sequence[str]) -> str:
    picked = {name: value[name] for name in names if value.get(name) is not None}
    if not picked:
        raise InvalidRequest(f"{place} has none of the fields that rank_fields names: {', '.join(names)}.")
    if len(names) == 1 and isinstance(picked[names[0]], str):
        return str(picked[names[0]])
    return _lines(picked, place)


def text_parts(parts: Sequence[Any]) -> list[str]:
    """The texts among the parts of a `content`."""
    found = [part.get("text") if isinstance(part, dict) else part for part in parts]
    return [part for part in found if isinstance(part, str)]


def _joined(parts: Sequence[Any], place: str) -> str:
    texts = text_parts(parts)
    if not texts:
        raise InvalidRequest(
            f'{place} has a "content" without a text or an image. Send {{"type": "text", "text": …}}.'
        )
    return "\n".join(texts)


def _lines(value: Mapping[str, Any], place: str) -> str:
    """Return the fields as YAML, one per line; nested values are in YAML's flow style, which is JSON."""
    try:
        return "\n".join(
            f"{name}: {field if isinstance(field, str) else json.dumps(field, ensure_ascii=False)}"
            for name, field in value.items()
            if field is not None
        )
    except RecursionError:
        raise InvalidRequest(f"{place} is nested too deeply. Send its text as a string.") from None
