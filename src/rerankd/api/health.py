"""What a client asks beside scores: whether the service runs, and which models it serves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal, NotRequired

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse
from typing_extensions import TypedDict

from rerankd import __version__
from rerankd.api.answer import Route, error_response, json_response, reranker_of
from rerankd.api.auth import check_key
from rerankd.api.dialects import jina
from rerankd.api.origin import check_change
from rerankd.errors import EngineUnavailable, NoSuchPath
from rerankd.serving.pending import Pending
from rerankd.serving.roster import Entry, names
from rerankd.serving.served_model import ServedModel

router = APIRouter(route_class=Route)

# A model in one of these phases answers the next request, if only after it was loaded.
_CAN_ANSWER = ("ready", "unloaded")

_STATUSES = {
    400: "the request can't be meant; the message says which field and what to send",
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


def errors(*kinds: Any, statuses: Sequence[int] = _OF_SCORES) -> dict[int | str, dict[str, Any]]:
    """The reference's entry of each status that may come instead of an answer, in a shape of `kinds`."""
    shape = kinds[0]
    for kind in kinds[1:]:
        shape = shape | kind
    return {status: {"model": shape, "description": _STATUSES[status]} for status in statuses}


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
    summary="Whether the service runs, and what its engine does",
    responses={
        200: {
            "model": Health,
            "description": "it runs; `status` is ok when a model can answer, starting until all are read",
        },
        503: {"model": Health, "description": "all engines have failed, or all models were refused"},
    },
)
async def health(request: Request) -> Response:
    registry = reranker_of(request).registry
    rows = [_health_of(entry) for entry in registry.entries]
    phases = [row["engine"]["state"] for row in rows]
    # One model that works is a service that works; one that is loaded on demand works, too.
    if not registry.started:
        status = "starting"
    elif any(phase in _CAN_ANSWER for phase in phases):
        status = "ok"
    else:
        status = next((phase for phase in phases if phase not in ("failed", "refused")), "failed")
    if registry.is_closing and status != "failed":
        status = "stopping"
    first: ModelHealth = {"model": "", "engine": {"state": "starting", "starts": 0}}
    body: Health = {"status": status, **(rows[0] if rows else first), "models": rows}
    return json_response(body, status=503 if status == "failed" else 200)


def _health_of(entry: Entry) -> ModelHealth:
    state = entry.state
    engine: EngineState = {"state": state.phase, "starts": state.starts}
    if state.error is not None:
        engine["error"] = state.error.message
    return {"model": entry.name, "engine": engine}


class Ready(TypedDict):
    status: Literal["ready"]


class Awaited(TypedDict):
    """A model that can't be asked now: what it does, and for how many seconds by now."""

    model: str
    state: str
    since_s: float
    doing: NotRequired[str]
    error: NotRequired[str]


_NOT_READY: dict[int | str, dict[str, Any]] = {
    503: {"description": "not yet; `waiting_for` names each model, what it does and since when"}
}


@router.get(
    "/ready",
    summary="200 when requests can be answered, else 503",
    responses={200: {"model": Ready}, **_NOT_READY},
)
async def ready(request: Request) -> Response:
    registry = reranker_of(request).registry
    phases = [entry.state.phase for entry in registry.entries]
    if registry.started and any(phase in _CAN_ANSWER for phase in phases):
        return json_response({"status": "ready"})
    return _not_ready(request, registry.entries)


@router.get(
    "/v1/models/{name:path}/ready",
    summary="200 when this model can be asked, else 503",
    responses={200: {"model": Ready}, **_NOT_READY, **errors(jina.ErrorAnswer, statuses=[404])},
)
async def model_ready(request: Request, name: str) -> Response:
    entry = reranker_of(request).registry.named(name)
    if entry.state.phase in _CAN_ANSWER:
        return json_response({"status": "ready"})
    return _not_ready(request, [entry])


def _not_ready(request: Request, entries: Sequence[Entry]) -> Response:
    awaited = [_awaited(entry) for entry in entries if entry.state.phase != "ready"]
    words = "; ".join(_in_words(one) for one in awaited) or "it has not begun to read its models"
    waits = [wait_s for entry in entries if (wait_s := entry.retry_after_s())]
    error = EngineUnavailable(f"Not ready: {words}.", retry_after_s=min(waits, default=1))
    return error_response(request, error, more={"status": "not ready", "waiting_for": awaited})


def _awaited(entry: Entry) -> Awaited:
    state = entry.state
    told: Awaited = {
        "model": entry.name,
        "state": state.phase,
        "since_s": round(time.monotonic() - state.since, 1),
    }
    if isinstance(entry, Pending) and entry.doing:
        told["doing"] = entry.doing
    if state.error is not None:
        told["error"] = state.error.message
    return told


def _in_words(one: Awaited) -> str:
    doing = f" ({one['doing']})" if "doing" in one else ""
    return f"{one['model']} is {one['state']}{doing} since {one['since_s']:.0f} s"


@router.get("/.well-known/live", include_in_schema=False)
async def weaviate_live(request: Request) -> Response:
    """What Weaviate's module reranker-transformers asks: 204 while the service runs."""
    return Response(status_code=204)


@router.get("/.well-known/ready", include_in_schema=False)
async def weaviate_ready(request: Request) -> Response:
    """What Weaviate waits for at its start: 204 as soon as /ready is 200, else its 503."""
    answer = await ready(request)
    return Response(status_code=204) if answer.status_code == 200 else answer


@router.get("/meta", include_in_schema=False)
async def weaviate_meta(request: Request) -> Response:
    """What Weaviate shows of the model in its own /v1/meta. It sends no key, so none is asked for here."""
    model = reranker_of(request).model
    return json_response({"model_name": model.name, "max_input_length": model.scoring.max_length})


class ModelRow(TypedDict):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    model_type: Literal["rerank"]
    model_name: str


class Unavailable(TypedDict):
    """A model of the settings that can't be asked, and why."""

    id: str
    reason: str


class ModelList(TypedDict):
    """`data` holds what may be asked; `unavailable`, only where there is one, what was refused."""

    object: Literal["list"]
    data: list[ModelRow]
    unavailable: NotRequired[list[Unavailable]]


@router.get(
    "/v1/models",
    summary="The models that are served",
    responses={200: {"model": ModelList}, **errors(jina.ErrorAnswer, statuses=[401])},
)
async def models(request: Request) -> Response:
    reranker = reranker_of(request)
    check_key(request, reranker.keys)
    registry = reranker.registry
    # A client may keep this list and offer all of it to people: what was refused is not among it.
    refused = [one for one in registry.pending if one.error is not None]
    usable = [entry for entry in registry.entries if entry not in refused]
    body: ModelList = {
        "object": "list",
        "data": [_row(entry, name) for entry in usable for name in names(entry)],
    }
    if refused:
        body["unavailable"] = [{"id": one.name, "reason": one.refusal().message} for one in refused]
    return json_response(body)


@router.get(
    "/v1/models/{name:path}",
    summary="One model, by any name it is taken for",
    responses={200: {"model": ModelRow}, **errors(jina.ErrorAnswer, statuses=[401, 404, 422, 503])},
)
async def model(request: Request, name: str) -> Response:
    reranker = reranker_of(request)
    check_key(request, reranker.keys)
    entry = reranker.registry.entry(name)
    if isinstance(entry, Pending) and entry.error is not None:
        raise entry.refusal()
    return json_response(_row(entry, name))


def _row(entry: Entry, name: str) -> ModelRow:
    return {
        "id": name,
        "object": "model",
        # As it was when it was read: the file may be gone by now.
        "created": entry.model.changed_at if isinstance(entry, ServedModel) else 0,
        "owned_by": "rerankd",
        "model_type": "rerank",
        "model_name": entry.name,
    }


@router.get(
    "/metrics",
    summary="Counters and measurements, as Prometheus reads them",
    response_class=PlainTextResponse,
    responses=errors(jina.ErrorAnswer, statuses=[401]),
)
async def metrics(request: Request) -> Response:
    reranker = reranker_of(request)
    if not reranker.settings.open_metrics:
        check_key(request, reranker.keys)
    return Response(reranker.metrics.read(), media_type=reranker.metrics.content_type)


@router.post(
    "/v1/models/{name:path}/reload",
    status_code=202,
    summary="Start a failed engine again, or replace a running one between requests",
    responses={
        202: {"description": "it has begun"},
        **errors(jina.ErrorAnswer, statuses=[401, 403, 404, 415]),
    },
)
async def reload(request: Request, name: str) -> Response:
    reranker = reranker_of(request)
    check_key(request, reranker.keys)
    check_change(request, reranker)
    entry = reranker.registry.named(name)
    await reranker.registry.reload(entry)
    return json_response({"status": "reloading", "model": entry.name}, 202)


@router.get("/v1/cluster/auth", include_in_schema=False)
async def cluster_auth(request: Request) -> Response:
    """What Xinference's clients ask first. Without a key it is a 404, as in a Xinference without users; with
    one they only send theirs when they are told that it is asked for."""
    if not reranker_of(request).keys:
        raise NoSuchPath("This service asks for no key, so there is nothing at /v1/cluster/auth.")
    return json_response({"auth": True})


class Classes(TypedDict):
    id2label: dict[str, str]
    label2id: dict[str, int]


class ModelType(TypedDict):
    reranker: Classes


class Info(TypedDict):
    model_id: str
    model_type: ModelType
    max_input_length: int
    max_batch_tokens: int
    max_client_batch_size: int
    auto_truncate: bool
    version: str


@router.get(
    "/info", summary="The model, as Text Embeddings Inference tells of it", responses={200: {"model": Info}}
)
async def info(request: Request) -> Response:
    # Without a key, as /health: Continue sends none here.
    reranker = reranker_of(request)
    max_length = reranker.model.scoring.max_length
    body: Info = {
        "model_id": reranker.model.name,
        "model_type": {"reranker": {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}},
        "max_input_length": max_length,
        "max_batch_tokens": max_length,
        "max_client_batch_size": reranker.settings.max_documents,
        "auto_truncate": True,
        "version": __version__,
    }
    return json_response(body)
