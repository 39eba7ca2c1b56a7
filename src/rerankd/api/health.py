"""Health, readiness and metrics: /health, /ready and /metrics, and Weaviate's readiness check."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, NotRequired

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from typing_extensions import TypedDict

from rerankd.api.auth import check_key
from rerankd.api.openapi import errors
from rerankd.api.responses import Route, error_response, json_response, reranker_of
from rerankd.errors import EngineUnavailable
from rerankd.serving.model_names import AnyModel
from rerankd.serving.pending_model import PendingModel

router = APIRouter(route_class=Route)

# A model in one of these phases can answer the next request; an unloaded one is loaded first.
_CAN_ANSWER = ("ready", "unloaded")


class EngineState(TypedDict):
    state: str
    starts: int
    error: NotRequired[str]


class ModelHealth(TypedDict):
    model: str
    engine: EngineState


class Health(TypedDict):
    status: str
    model: str
    engine: EngineState
    models: list[ModelHealth]


@router.get(
    "/health",
    summary="Check whether the service runs",
    responses={
        200: {
            "model": Health,
            "description": (
                "The service runs. `status` is `ok` if at least one model can answer, and `starting` until "
                "all models are read."
            ),
        },
        503: {"model": Health, "description": "All engines have failed or all models were refused."},
    },
)
async def health(request: Request) -> Response:
    registry = reranker_of(request).registry
    rows = [_health_of(entry) for entry in registry.all]
    phases = [row["engine"]["state"] for row in rows]
    # The service is healthy if one model can answer, including one that is loaded on demand.
    if not registry.setup.started:
        status = "starting"
    elif any(phase in _CAN_ANSWER for phase in phases):
        status = "ok"
    else:
        status = next((phase for phase in phases if phase not in ("failed", "refused")), "failed")
    if registry.setup.is_closing and status != "failed":
        status = "stopping"
    first: ModelHealth = {"model": "", "engine": {"state": "starting", "starts": 0}}
    body: Health = {"status": status, **(rows[0] if rows else first), "models": rows}
    return json_response(body, status=503 if status == "failed" else 200)


def _health_of(entry: AnyModel) -> ModelHealth:
    state = entry.state
    engine: EngineState = {"state": state.phase, "starts": state.starts}
    if state.error is not None:
        engine["error"] = state.error.message
    return {"model": entry.name, "engine": engine}


class Ready(TypedDict):
    status: Literal["ready"]


class Awaited(TypedDict):
    """A model that can't answer requests now: its state, and for how many seconds."""

    model: str
    state: str
    since_s: float
    doing: NotRequired[str]
    error: NotRequired[str]


_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "Not ready. `waiting_for` lists each model with its state and since when."}
}


@router.get(
    "/ready",
    summary="Check whether the service can answer requests",
    responses={200: {"model": Ready}, **_NOT_READY},
)
async def ready(request: Request) -> Response:
    registry = reranker_of(request).registry
    return _readiness(request, registry.all, started=registry.setup.started)


@router.get(
    "/v1/models/{name:path}/ready",
    summary="Check whether a model can answer requests",
    responses={200: {"model": Ready}, **_NOT_READY, **errors(404)},
)
async def model_ready(request: Request, name: str) -> Response:
    registry = reranker_of(request).registry
    if (cascade := registry.cascade(name)) is None:
        return _readiness(request, [registry.named(name)])
    # A cascade is as ready as its least ready stage.
    stages = registry.entries_of(cascade.name)
    return _readiness(request, [one for one in stages if one.state.phase not in _CAN_ANSWER] or stages)


def _readiness(request: Request, entries: Sequence[AnyModel], *, started: bool = True) -> Response:
    if started and any(entry.state.phase in _CAN_ANSWER for entry in entries):
        return json_response({"status": "ready"})
    awaited = [_awaited(entry) for entry in entries if entry.state.phase != "ready"]
    words = "; ".join(_in_words(one) for one in awaited) or "the models have not been read yet"
    waits = [wait_s for entry in entries if (wait_s := entry.retry_after_s())]
    error = EngineUnavailable(f"Not ready: {words}.", retry_after_s=min(waits, default=1))
    return error_response(request, error, more={"status": "not ready", "waiting_for": awaited})


def _awaited(entry: AnyModel) -> Awaited:
    state = entry.state
    row: Awaited = {
        "model": entry.name,
        "state": state.phase,
        "since_s": round(time.monotonic() - state.since, 1),
    }
    if isinstance(entry, PendingModel) and entry.doing:
        row["doing"] = entry.doing
    if state.error is not None:
        row["error"] = state.error.message
    return row


def _in_words(one: Awaited) -> str:
    doing = f" ({one['doing']})" if "doing" in one else ""
    return f"{one['model']} has been {one['state']}{doing} for {one['since_s']:.0f} s"


@router.get("/.well-known/live", include_in_schema=False)
async def weaviate_live(request: Request) -> Response:
    """Weaviate's liveness check (module reranker-transformers): 204 while the service runs."""
    return Response(status_code=204)


@router.get("/.well-known/ready", include_in_schema=False)
async def weaviate_ready(request: Request) -> Response:
    """Weaviate's readiness check at its start: 204 if /ready is 200, else the 503 of /ready."""
    answer = await ready(request)
    return Response(status_code=204) if answer.status_code == 200 else answer


@router.get(
    "/metrics",
    summary="Get metrics in the Prometheus format",
    response_class=PlainTextResponse,
    responses=errors(401),
)
async def metrics(request: Request) -> Response:
    reranker = reranker_of(request)
    if not reranker.settings.open_metrics:
        check_key(request, reranker.keys)
    page = await reranker.registry.remote.metrics(reranker.metrics.read())
    return Response(page, media_type=reranker.metrics.content_type)
