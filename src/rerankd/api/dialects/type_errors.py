"""What does not fit in a JSON value, in words. Pure."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError


def sentence(error: ValidationError, *place: str, example: object = None) -> str:
    """What is wrong, by the first of the errors; `place` is where the value stands in the body, `example` a
    whole one, for a field that is missing."""
    item: Any = error.errors()[0]
    name = ".".join(str(part) for part in (*place, *item["loc"]))
    if item["type"] == "missing":
        return f"{name!r} is missing. Send JSON like {json.dumps(example, ensure_ascii=False)}"
    wanted = _WANTED.get(item["type"], item["msg"].removeprefix("Value error, "))
    return f"{name!r} is {kind(item['input'])}, but {wanted}."


_WANTED = {
    "string_type": "must be a string",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "finite_number": "must be a whole number",
    "greater_than_equal": "must not be negative; leave it out for the default",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}


def kind(value: object) -> str:
    """A JSON value in words."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"the string {value[:40]!r}"
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case _:
            return "an object"
