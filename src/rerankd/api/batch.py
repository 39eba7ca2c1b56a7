"""`POST /v1/rerank/batch`: several rerank requests in one body, each with its own answer or error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from rerankd.api import limits, openapi
from rerankd.api.auth import check_key
from rerankd.api.body import read_json
from rerankd.api.client import client_of
from rerankd.api.dialects import jina, table
from rerankd.api.dialects.dialect import Dialect
from rerankd.api.dialects.option_rules import with_headers
from rerankd.api.dialects.type_errors import kind
from rerankd.api.responses import Route, json_response, plain_path, request_id, reranker_of
from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest, RerankdError
from rerankd.many_requests import Outcome, answer_each
from rerankd.serving import request_checks

router = APIRouter(route_class=Route)

_EXAMPLE: dict[str, Any] = {
    "model": "builtin:e5",
    "requests": [
        {"query": "which bear eats bamboo?", "documents": ["Bread is baked.", "Pandas live on bamboo."]},
        {"query": "what is bread?", "documents": ["Bread is baked.", "Pandas live on bamboo."], "top_n": 1},
    ],
}
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["requests"],
    "properties": {
        "requests": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "object"},
            "description": "The requests: bodies as for /v1/rerank, in any dialect with one query. A field "
            "beside `requests` is the default of that field in each of them.",
        },
    },
    "example": _EXAMPLE,
}


class Failed(TypedDict):
    error: jina.ErrorDetail
    status: int


class Answers(TypedDict):
    """One entry for each request, in order: its answer, in its own dialect, or its error."""

    id: str
    object: Literal["list"]
    responses: list[Any]


@router.post(
    "/v1/rerank/batch",
    summary="Rank the documents of several queries",
    responses={200: {"model": Answers}, **openapi.errors(400, 401, 413)},
    openapi_extra=openapi.body(_SCHEMA),
)
async def batch(request: Request) -> Response:
    reranker = reranker_of(request)
    request.state.dialect = "batch"
    check_key(request, reranker.keys)
    timeout_s = limits.wanted_timeout_s(request)
    body = await read_json(request, reranker.settings.max_body_bytes)
    items = _read_all(_items(body), request, reranker.settings)
    asked = [item for item in items if not isinstance(item, RerankdError)]
    outcomes = iter(
        await answer_each(reranker, [one for _, one in asked], timeout_s=timeout_s, client=client_of(request))
    )
    responses = [
        _failed(item)
        if isinstance(item, RerankdError)
        else _rendered(item[0], next(outcomes), f"{request_id(request)}-{at}")
        for at, item in enumerate(items)
    ]
    answer: Answers = {"id": request_id(request), "object": "list", "responses": responses}
    return json_response(answer)


def _items(body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The bodies of the requests. Raises InvalidRequest if there is no list of objects."""
    sent = body.get("requests")
    if not isinstance(sent, list) or not sent:
        raise InvalidRequest(
            '"requests" must be a list of rerank requests, each with a query and documents, as in '
            '{"requests": [{"query": "a bear", "documents": ["a panda", "bread"]}]}.'
        )
    shared = {name: value for name, value in body.items() if name != "requests"}
    for at, item in enumerate(sent):
        if not isinstance(item, dict):
            raise InvalidRequest(f"Request {at} is {kind(item)}, but must be an object.")
    return (shared | item for item in sent)


def _read_all(
    sent: Iterable[dict[str, Any]], request: Request, settings: Settings
) -> list[tuple[Dialect, RerankRequest] | RerankdError]:
    """Read the requests. Raises InvalidRequest as soon as they have more documents than one request may have:
    with documents as a default, a small body can stand for billions of them."""
    found = []
    count = 0
    for item in sent:
        found.append(one := _read(item, request))
        # A request that is invalid costs as much as one with a document.
        count += 1 if isinstance(one, RerankdError) else len(one[1].documents)
        request_checks.check_count(count, settings, "documents or more")
    return found


def _read(item: dict[str, Any], request: Request) -> tuple[Dialect, RerankRequest] | RerankdError:
    dialect = table.choose(plain_path(request.scope["path"]), item)
    try:
        (parsed,) = dialect.parse(with_headers(item, request.headers))
    except RerankdError as error:
        return error
    return dialect, parsed


def _rendered(dialect: Dialect, outcome: Outcome, number: str) -> Any:
    return _failed(outcome) if isinstance(outcome, RerankdError) else dialect.render(outcome, number)


def _failed(error: RerankdError) -> Failed:
    return {"error": jina.render_error(error)["error"], "status": error.status_hint}
