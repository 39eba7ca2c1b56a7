"""What the reference (openapi.json) says of requests and answers."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import Any

from rerankd.api.dialects.dialect import Dialect
from rerankd.api.dialects.table import DEFAULT

_STATUSES = {
    400: "the request is invalid; the message names the field and the expected value",
    401: "the API key is missing or wrong",
    403: "admin_api is not set, or the host name or the page that asks is not allowed",
    404: "there is no such model",
    409: "it can't be done with this model; the message says why",
    413: "the body is too large",
    415: "the content type or the encoding of the body is not read here; the message says which is",
    422: "the model is not served, and the message says why; a reload tries it again",
    429: "too many requests wait; Retry-After says when to try again",
    502: "the engine answered something no score can be made of",
    503: "the engine is not ready; Retry-After says when to try again",
    504: "it took too long",
    507: "the model needs more memory than all engines together may hold",
}
_OF_SCORES = (400, 401, 404, 413, 422, 429, 502, 503, 504, 507)


def errors(*statuses: int, spoken: Sequence[Dialect] = (DEFAULT,)) -> dict[int | str, dict[str, Any]]:
    """The entry of each status that may come instead of an answer, in the shapes of these dialects."""
    shape = _either(dialect.error for dialect in spoken)
    return {status: {"model": shape, "description": _STATUSES[status]} for status in statuses}


def body(*schemas: dict[str, Any]) -> dict[str, Any]:
    """The entry of a request whose JSON body is of one of these schemas."""
    schema = schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def scores(spoken: Sequence[Dialect]) -> dict[str, Any]:
    """The entries of a rerank request in these dialects, as options of a route."""
    answer = {"model": _either(dialect.answer for dialect in spoken), "description": "the scores"}
    return {
        "responses": {200: answer, **errors(*_OF_SCORES, spoken=spoken)},
        "openapi_extra": body(*(dialect.schema() for dialect in spoken)),
    }


def _either(kinds: Iterable[Any]) -> Any:
    return functools.reduce(operator.or_, kinds)
