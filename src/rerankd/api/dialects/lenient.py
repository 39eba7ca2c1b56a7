"""What every dialect forgives, written once.

A document, or a query, may be a string, or an object: of `{"text": …}` the text counts, of
`{"page_content": …}` (LangChain) and `{"content": …}` likewise, of
`{"content": [{"type": "text", "text": …}, …]}` the text parts, of any other its fields, as `key: value`
lines. `rank_fields` names the fields that count. A flag may be spelled as a string ("true"), a count too;
null, and an empty string in place of either, is the same as nothing.
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


# The type of a part, or the name of a field, that is an image.
_IMAGES = ("image", "image_url", "images")

Flag = Annotated[bool | None, BeforeValidator(_blank_is_null)]
Count = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_count)]
Whole = Annotated[Annotated[int, Field(ge=-1)], BeforeValidator(_count)]
Number = Annotated[Annotated[float, Field(allow_inf_nan=False)], BeforeValidator(_number)]
_TEXT_NAMES = ("text", "page_content", "content")
# What these say is for the reference: what is refused when it is empty has a better sentence elsewhere.
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
    """The text that `value` stands for; `place` names it in the error.

    Raises InvalidRequest for an object without any text.
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
        raise InvalidRequest(f'{place} holds no text. Send a string or {{"text": …}}; images are not read.')
    return _lines(value, place)


def named_text(value: Mapping[str, Any]) -> str | None:
    """The text of an object that has one under a name that is known: `text`, LangChain's `page_content`, or
    `content`."""
    return next((value[name] for name in _TEXT_NAMES if isinstance(value.get(name), str)), None)


def has_image(value: str | Mapping[str, Any]) -> bool:
    """Whether an object holds an image beside its text; `text` leaves it out."""
    if isinstance(value, str):
        return False
    parts = value.get("content")
    kinds = [part.get("type") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    return any(kind in _IMAGES for kind in kinds) or any(value.get(name) for name in _IMAGES)


def texts(values: Sequence[str | Mapping[str, Any]], rank_fields: Sequence[str] = ()) -> tuple[str, ...]:
    """`text` of each document of a request."""
    return tuple(text(value, f"Document {at}", rank_fields) for at, value in enumerate(values))


def _fields(value: Mapping[str, Any], place: str, names: Sequence[str]) -> str:
    picked = {name: value[name] for name in names if value.get(name) is not None}
    if not picked:
        raise InvalidRequest(f"{place} has none of the rank_fields {', '.join(names)}.")
    if len(names) == 1 and isinstance(picked[names[0]], str):
        return str(picked[names[0]])
    return _lines(picked, place)


def _joined(parts: Sequence[Any], place: str) -> str:
    found = [part.get("text") if isinstance(part, dict) else part for part in parts]
    said = [part for part in found if isinstance(part, str)]
    if not said:
        raise InvalidRequest(
            f'{place} has a "content" without a text part. Send {{"type": "text", "text": …}}; images are '
            "not read."
        )
    return "\n".join(said)


def _lines(value: Mapping[str, Any], place: str) -> str:
    """The fields as YAML, one a line; what is nested is in YAML's flow style, which is JSON."""
    try:
        return "\n".join(
            f"{name}: {field if isinstance(field, str) else json.dumps(field, ensure_ascii=False)}"
            for name, field in value.items()
            if field is not None
        )
    except RecursionError:
        raise InvalidRequest(f"{place} is nested too deeply. Send its text as a string.") from None
