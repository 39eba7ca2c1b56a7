"""What those who run the service ask: /metrics, and a reload."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from rerankd.api.auth import check_key
from rerankd.api.routes import _json, _reranker, _Route
from rerankd.errors import UnknownModel

router = APIRouter(route_class=_Route)


@router.get("/metrics", summary="Counters and measurements, as Prometheus reads them")
async def metrics(request: Request) -> Response:
    reranker = _reranker(request)
    if not reranker.settings.open_metrics:
        check_key(request, reranker.settings.api_key)
    return Response(reranker.metrics.read(), media_type=reranker.metrics.content_type)


@router.post(
    "/v1/models/{name:path}/reload",
    status_code=202,
    summary="Start a failed engine again, or replace a running one between requests",
)
async def reload(request: Request, name: str) -> Response:
    reranker = _reranker(request)
    check_key(request, reranker.settings.api_key)
    names = (reranker.model.name, *reranker.model.aliases)
    if name not in names:
        raise UnknownModel(f"There is no model {name!r} here; there is {', '.join(names)}.")
    await reranker.reload()
    return _json({"status": "reloading", "model": reranker.model.name}, 202)
