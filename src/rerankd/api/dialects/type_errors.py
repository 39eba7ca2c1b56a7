"""Messages for JSON values of the wrong type, from pydantic's validation errors. Pure."""

from __future__ import annotations

import json
from typing import Any

from pydantic import ValidationError


def sentence(error: ValidationError, *place: str, example: object = None) -> str:
    """Describe the first of the errors.

    `place` is the path of the value in the body. `example` is a valid body, shown if a field is missing.
    """
    item: Any = error.errors()[0]
    name = ".".join(str(part) for part in (*place, *item["loc"]))
    if item["type"] == "missing":
        return f"{name!r} is missing. Send JSON like {json.dumps(example, ensure_ascii=False)}"
    if item["type"] == "literal_error":
        return f"{name!r} is {kind(item['input'])}, but must be {item['ctx']['expected']}."
    wanted = _WANTED.get(item["type"], item["msg"].removeprefix("Value error, "))
    if item["type"] in _BOUNDS and item["ctx"] != {"ge": 0}:
        wanted = _BOUNDS[item["type"]].format(**item["ctx"])
    return f"{name!r} is {kind(item['input'])}, but {wanted}."


_WANTED = {
    "string_type": "must be a string",
    "list_type": "must be a list",
    "dict_type": "must be an object",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "finite_number": "must be a whole number",
    "greater_than_equal": "must not be negative; omit it for the default",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "extra_forbidden": "there is no such field",
}
_BOUNDS = {
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} elements",
}


def kind(value: object) -> str:
    """Describe a JSON value as its sender typed it, shortened."""
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"the string {json.dumps(value[:40], ensure_ascii=False)}"
        case int() | float():
            return f"the number {json.dumps(value)}"
        case list():
            return "a list"
        case _:
            return "an object"
