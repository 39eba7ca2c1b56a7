"""All routes, and the handler of rerank requests for all dialects and paths."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from rerankd.api import (
    admin,
    batch,
    catalog,
    embeddings,
    health,
    limits,
    models,
    ollama_models,
    openapi,
    status,
)
from rerankd.api.auth import refusal
from rerankd.api.body import read_json
from rerankd.api.client import client_of
from rerankd.api.dialects import table
from rerankd.api.dialects.dialect import Dialect, joined
from rerankd.api.dialects.option_rules import with_headers
from rerankd.api.responses import (
    Route,
    json_response,
    plain_path,
    request_id,
    reranker_of,
    result_headers,
    use_dialect,
)
from rerankd.errors import RerankdError
from rerankd.service import Reranker

_ROOT = "/"
# How much of an unauthorized request's body is read to detect the dialect of the error.
_REFUSED_BYTES = 2**16


async def rerank(request: Request) -> Response:
    """Handle a rerank request in any dialect."""
    reranker = reranker_of(request)
    dialect, value = await _read(request, reranker)
    timeout_s = limits.wanted_timeout_s(request)
    requests = dialect.parse(with_headers(value, request.headers))
    name = request.state.model = reranker.registry.display_name(requests[0].model)
    results = await reranker.answer_all(requests, timeout_s=timeout_s, client=client_of(request))
    result = joined(results)
    return json_response(dialect.render(result, request_id(request)), headers=result_headers(name, result))


async def _read(request: Request, reranker: Reranker) -> tuple[Dialect, dict[str, Any]]:
    """Read the body and detect its dialect, in which errors are rendered from now on.

    The body of an unauthorized request is read too, up to a limit, to detect the dialect of the error. Raises
    Unauthorized, PayloadTooLarge or InvalidRequest.
    """
    settings = reranker.settings
    path = plain_path(request.scope["path"])  # request.url fails for a malformed Host header
    request.state.dialect = "unknown"
    refused = refusal(request, reranker.keys)
    try:
        value = await read_json(request, settings.max_body_bytes if refused is None else _REFUSED_BYTES)
    except RerankdError as error:
        use_dialect(request, table.choose(path, {}))
        raise refused or error from None
    dialect = table.choose(path, value)
    request.state.dialect = dialect.name
    use_dialect(request, dialect)
    if refused is not None:
        raise refused
    return dialect, value


def all_routes() -> APIRouter:
    """Return all routes but the one of the root. openapi.json has only the first of the paths that accept the
    same dialects."""
    found = APIRouter(route_class=Route)
    shown = table.shown()
    named = (path for dialect in shown for path in dialect.named_paths)
    shared = (*(path for path in table.SHARED if path != _ROOT), *named)
    _add(found, shared, "Rank documents by their relevance to a query", *shown)
    for dialect in shown:
        _add(found, dialect.own_paths, f"Rank documents, in the dialect of {dialect.title}", dialect)
    # After the others, because FastAPI tries all routes in order: 20 of them take 0.1 ms.
    for part in (batch, embeddings, admin, catalog, health, models, ollama_models, status):
        found.include_router(part.router)
    return found


def _add(found: APIRouter, paths: tuple[str, ...], summary: str, *spoken: Dialect) -> None:
    described = openapi.scores(spoken)
    for path in paths:
        found.add_api_route(
            path, rerank, methods=["POST"], summary=summary, include_in_schema=path == paths[0], **described
        )


router = all_routes()
# Only for the complete app: an app that has the other routes keeps its own root.
root_router = APIRouter(route_class=Route)
root_router.add_api_route(_ROOT, rerank, methods=["POST"], include_in_schema=False)
