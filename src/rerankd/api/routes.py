"""The path table and the one rerank handler."""

from __future__ import annotations

import json
import logging
import math
import uuid
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect

from rerankd.api import jina, limits
from rerankd.api.auth import check_key
from rerankd.api.body import read_json
from rerankd.errors import EngineUnavailable, RerankdError
from rerankd.service import Reranker

_log = logging.getLogger("rerankd.api")


class _Route(APIRoute):
    """Turns errors into answers; here and not in the app, so that the router also works in somebody
    else's."""

    def get_route_handler(self) -> limits.Answer:
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except RerankdError as error:
                return error_response(error)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception:  # the crash boundary of a request
                _log.exception("a request failed for an unexpected reason")
                return error_response(
                    RerankdError("rerankd failed for an unexpected reason; its log says more.")
                )

        return limits.guard(answer)


router = APIRouter(route_class=_Route)

_RERANK_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": jina.Body.model_json_schema()}},
    }
}


@router.post(
    "/v1/rerank", openapi_extra=_RERANK_DOCS, summary="Order documents by how well they answer a query"
)
@router.post("/rerank", openapi_extra=_RERANK_DOCS, include_in_schema=False)
async def rerank(request: Request) -> Response:
    reranker = _reranker(request)
    check_key(request, reranker.settings.api_key)
    request.state.dialect = "jina"
    timeout_s = limits.wanted_timeout_s(request)
    asked = jina.parse(await read_json(request, reranker.settings.max_body_bytes))
    result = await reranker.answer(asked, timeout_s=timeout_s)
    return _json(jina.render(result, f"rerank-{uuid.uuid4().hex}"))


@router.get("/health", summary="Whether the service runs, and what its engine does")
async def health(request: Request) -> Response:
    reranker = _reranker(request)
    state = reranker.state
    body: dict[str, Any] = {
        "status": "ok" if state.engine is not None else state.phase,
        "model": reranker.model.name,
        "engine": {"state": state.phase, "starts": state.starts},
    }
    if state.error is not None:
        body["engine"]["error"] = state.error.message
    return _json(body, status=503 if state.phase == "failed" else 200)


@router.get("/ready", summary="200 when requests can be answered, else 503")
async def ready(request: Request) -> Response:
    state = _reranker(request).state
    if state.engine is None:
        raise EngineUnavailable(f"The engine is not ready: {state.phase}.")
    return _json({"status": "ready"})


@router.get("/v1/models", summary="The models that are served")
async def models(request: Request) -> Response:
    reranker = _reranker(request)
    check_key(request, reranker.settings.api_key)
    model = reranker.model
    created = int(model.path.stat().st_mtime)
    names = (model.name, *model.aliases)
    rows = [
        {"id": name, "object": "model", "created": created, "owned_by": "rerankd", "model_type": "rerank"}
        for name in names
    ]
    return _json({"object": "list", "data": rows})


def error_response(error: RerankdError) -> Response:
    """An error as an answer, with Retry-After where waiting helps."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if error.status_hint == 401:
        headers["www-authenticate"] = "Bearer"
    return _json(jina.render_error(error), error.status_hint, headers)


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    data = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # A document may hold a lone surrogate; it comes back as the mark for what can't be read.
    return Response(data.encode("utf-8", "replace"), status, headers, "application/json")


def _reranker(request: Request) -> Reranker:
    reranker = getattr(request.app.state, "rerankd", None)
    if not isinstance(reranker, Reranker):
        raise RerankdError(
            "rerankd is not running in this app: give the app lifespan=rerankd.lifespan(settings), see the "
            "README."
        )
    return reranker
