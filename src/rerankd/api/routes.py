"""All routes, and the one handler of rerank requests, which serves each dialect at each of its paths."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from rerankd.api import admin, health, limits, models, ollama_models, openapi, status
from rerankd.api.auth import refusal
from rerankd.api.body import read_json
from rerankd.api.client import client_of
from rerankd.api.dialects import table
from rerankd.api.dialects.dialect import Dialect, joined
from rerankd.api.dialects.option_rules import with_headers
from rerankd.api.responses import Route, facts, json_response, plain_path, request_id, reranker_of, speaks
from rerankd.errors import RerankdError
from rerankd.service import Reranker

# What is read of the body of a caller who is not let in, to answer in the dialect it speaks.
_REFUSED_BYTES = 2**16


async def rerank(request: Request) -> Response:
    """The answer to a rerank request, in its dialect."""
    reranker = reranker_of(request)
    dialect, value = await _read(request, reranker)
    timeout_s = limits.wanted_timeout_s(request)
    asked = dialect.parse(with_headers(value, request.headers))
    entry = reranker.registry.entry(asked[0].model)
    request.state.model = entry.name
    answers = await reranker.answer_all(asked, timeout_s=timeout_s, client=client_of(request))
    result = joined(answers)
    return json_response(dialect.render(result, request_id(request)), headers=facts(entry.name, result))


async def _read(request: Request, reranker: Reranker) -> tuple[Dialect, dict[str, Any]]:
    """The body and its dialect, which errors are rendered in from here on.

    Raises Unauthorized, PayloadTooLarge or InvalidRequest. A refused caller's body is read too, within
    bounds: what it says tells how to refuse.
    """
    settings = reranker.settings
    path = plain_path(request.scope["path"])  # not .url, which a malformed Host breaks
    request.state.dialect = "unknown"
    refused = refusal(request, reranker.keys)
    try:
        value = await read_json(request, settings.max_body_bytes if refused is None else _REFUSED_BYTES)
    except RerankdError as error:
        speaks(request, table.choose(path, {}))
        raise refused or error from None
    dialect = table.choose(path, value)
    request.state.dialect = dialect.name
    speaks(request, dialect)
    if refused is not None:
        raise refused
    return dialect, value


def all_routes() -> APIRouter:
    """The routes of the service. Of the paths that speak the same dialects the first is in the reference."""
    found = APIRouter(route_class=Route)
    for part in (admin, health, models, ollama_models, status):
        found.include_router(part.router)
    shown = table.shown()
    shared = (*table.SHARED, *(path for dialect in shown for path in dialect.named_paths))
    _add(found, shared, "Order documents by how well they answer a query", *(d for d in shown if not d.paths))
    for dialect in shown:
        _add(found, dialect.own_paths, f"The same, as {dialect.title} has it", dialect)
    return found


def _add(found: APIRouter, paths: tuple[str, ...], summary: str, *spoken: Dialect) -> None:
    told = openapi.scores(spoken)
    for path in paths:
        found.add_api_route(
            path, rerank, methods=["POST"], summary=summary, include_in_schema=path == paths[0], **told
        )


router = all_routes()
