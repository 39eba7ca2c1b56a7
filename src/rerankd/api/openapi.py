"""Descriptions of statuses, request bodies and responses for openapi.json."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rerankd.api.dialects.dialect import Dialect
from rerankd.api.dialects.table import DEFAULT, DIALECTS

_STATUSES = {
    400: "The request is invalid. The message names the field and the expected value.",
    401: "The API key is missing or wrong.",
    403: "The admin API is disabled, or the host name or the origin of the web page is not allowed.",
    404: "The model does not exist.",
    409: "The operation is not possible for this model. The message gives the reason.",
    413: "The request body is too large.",
    415: "The content type or encoding of the body is not supported. The message names the supported ones.",
    422: "The model can't be served. The message gives the reason; a reload retries.",
    429: "The queue is full. Retry after the seconds in Retry-After.",
    502: "The engine returned an invalid response.",
    503: "The engine is not ready. Retry after the seconds in Retry-After.",
    504: "The request timed out.",
    507: "The model needs more memory than memory_budget allows for all engines together.",
}
_OF_SCORES = (400, 401, 404, 413, 422, 429, 502, 503, 504, 507)


def errors(*statuses: int, spoken: Sequence[Dialect] = (DEFAULT,)) -> dict[int | str, dict[str, Any]]:
    """Return the entries of these error statuses, with the error formats of these dialects."""
    shape = _either(dialect.error for dialect in spoken)
    return {status: {"model": shape, "description": _STATUSES[status]} for status in statuses}


def body(*schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a request body that matches one of these schemas."""
    whole = [_inlined(one, one.get("$defs", {})) for one in schemas]
    schema = whole[0] if len(whole) == 1 else {"anyOf": whole}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _inlined(value: Any, definitions: Mapping[str, Any]) -> Any:
    """The schema with its own definitions in place of the references to them: `#/$defs` means another place
    in openapi.json."""
    if isinstance(value, list):
        return [_inlined(one, definitions) for one in value]
    if not isinstance(value, dict):
        return value
    if str(value.get("$ref", "")).startswith("#/$defs/"):
        return _inlined(definitions[value["$ref"].rpartition("/")[2]], definitions)
    return {name: _inlined(one, definitions) for name, one in value.items() if name != "$defs"}


def scores(spoken: Sequence[Dialect]) -> dict[str, Any]:
    """Return the route options that describe a rerank request in these dialects. A body of another dialect
    is answered in that one."""
    answer = {
        "model": _either(dialect.answer for dialect in DIALECTS),
        "description": "The documents with their scores.",
    }
    return {
        "responses": {200: answer, **errors(*_OF_SCORES, spoken=DIALECTS)},
        "openapi_extra": body(*(dialect.schema() for dialect in spoken)),
    }


def _either(kinds: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, kinds)
