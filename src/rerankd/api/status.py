"""`GET /v1/status`: models, engines, queues and recent history, for the status page and `rerankd status`."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, NotRequired

from fastapi import APIRouter, Request, Response
from typing_extensions import TypedDict

from rerankd import __version__
from rerankd.api.openapi import errors
from rerankd.api.remote_status import PlaceStatus, RemoteStatus, remote_status, unlisted_status
from rerankd.api.responses import Route, json_response, reranker_with_key
from rerankd.config.cascade import Cascade
from rerankd.deprecated_names import old_value
from rerankd.memory import main_bytes
from rerankd.recent_history import Series
from rerankd.serving.metric_readings import tokens_per_second
from rerankd.serving.pending_model import PendingModel
from rerankd.serving.registry import ModelRegistry
from rerankd.serving.served_model import ServedModel

router = APIRouter(route_class=Route)

_LOG_LINES = 40
_LOG_BYTES = 2**15


class EngineStatus(TypedDict):
    program: str
    why: str
    replicas: int
    pids: list[int]
    starts: int
    lost: int
    memory_bytes: int | None
    memory: dict[str, int]
    document_vectors: dict[str, int] | None
    error: NotRequired[str]
    log: str
    last_lines: list[str]


class CacheStatus(TypedDict):
    """`entries` in memory. The others count texts of rerank requests whose score was in memory, on disk, or
    in neither."""

    entries: int
    memory_hits: int
    disk_hits: int
    misses: int


class QueueStatus(TypedDict):
    requests: int
    documents: int
    tokens: int
    size_bytes: int
    documents_per_second: float
    tokens_per_second: float


class ModelStatus(TypedDict):
    id: str
    aliases: list[str]
    state: str
    path: str
    size_bytes: int
    quantisation: str | None
    licence: str | None
    languages: list[str]
    method: str
    max_length: int
    normalization: str
    way: str  # this and the next two are names of 0.1
    window: int
    transform: str
    explain: str
    calibration: dict[str, Any] | None
    notes: list[str]
    warnings: list[str]
    settings: dict[str, Any]
    self_test: str | None
    engine: EngineStatus
    queue: QueueStatus
    cache: CacheStatus


class PendingStatus(TypedDict):
    """A model of the settings that can't be used: `starting` while it is downloaded and read, or `refused`.

    `retry_after_s` is None if only a reload tries it again.
    """

    id: str
    aliases: list[str]
    ref: str
    state: str
    since_s: float
    doing: str
    error: str | None
    retry_after_s: int | None


class StageStatus(TypedDict):
    model: str
    keep: int | None
    margin: float | None


class CascadeStatus(TypedDict):
    """A name that scores in stages. `error` says why it can't answer now."""

    id: str
    aliases: list[str]
    stages: list[StageStatus]
    error: str | None


class RecentStatus(TypedDict):
    step_s: float
    requests: list[int]
    failed: list[int]
    documents: list[int]
    median_ms: list[float | None]
    p95_ms: list[float | None]
    waiting: list[int | None]
    memory_bytes: list[int | None]
    lost: list[int]


class Status(TypedDict):
    version: str
    uptime_s: float
    admin: bool
    memory_budget_bytes: int | None
    memory_budgets: dict[str, int]
    models: list[ModelStatus]
    cascades: list[CascadeStatus]
    unavailable: list[PendingStatus]
    remote: list[RemoteStatus]
    unlisted: list[PlaceStatus]
    disk_cache: dict[str, dict[str, str | int]]  # see DiskStatus, by what a file holds
    recent: RecentStatus


@router.get(
    "/v1/status",
    summary="Get the status of models, engines and queues, and the last ten minutes",
    responses={200: {"model": Status}, **errors(401)},
)
async def status(request: Request) -> Response:
    reranker = reranker_with_key(request)
    registry, metrics = reranker.registry, reranker.metrics
    now = time.monotonic()
    body: Status = {
        "version": __version__,
        "uptime_s": round(now - metrics.started, 1),
        "admin": reranker.settings.admin_api,
        "memory_budget_bytes": main_bytes(registry.budgets),
        "memory_budgets": dict(registry.budgets),
        "models": [await _model(served) for served in registry.models],
        "cascades": [_cascade(one, registry) for one in registry.cascades],
        "unavailable": [_pending(one, now) for one in registry.pending],
        "remote": remote_status(registry),
        "unlisted": unlisted_status(registry),
        "disk_cache": {name: asdict(one) for name, one in registry.disk.status.items()},
        "recent": _recent(metrics.recent.read(now)),
    }
    return json_response(body)


def _cascade(cascade: Cascade, registry: ModelRegistry) -> CascadeStatus:
    return {
        "id": cascade.name,
        "aliases": list(cascade.names[1:]),
        "stages": [
            {"model": stage.model, "keep": stage.keep, "margin": stage.margin} for stage in cascade.stages
        ],
        "error": registry.why_not(cascade) or None,
    }


async def _model(served: ServedModel) -> ModelStatus:
    model, recipe, scheduler = served.model, served.model.recipe, served.queue.scheduler
    metadata, entry, throughput = model.metadata, model.resolution.entry, scheduler.throughput
    return {
        "id": model.name,
        "aliases": list(model.names[1:]),
        "state": served.state.phase,
        "path": str(model.path),
        "size_bytes": metadata.size_bytes,
        "quantisation": metadata.file_type or metadata.quantisation or None,
        "licence": entry.licence if entry is not None else None,
        "languages": list(entry.languages) if entry is not None else [],
        "method": recipe.method,
        "max_length": recipe.max_length,
        "normalization": model.resolution.calibrated(recipe.normalization).name,
        "way": old_value("method", recipe.method),
        "window": recipe.max_length,
        "transform": recipe.normalization.name,
        "explain": model.resolution.explanation,
        "calibration": asdict(own) if (own := model.resolution.calibration) is not None else None,
        "notes": [*model.resolution.notes, *served.self_test.doubts],
        "warnings": [*model.resolution.warnings, *served.self_test.doubts],
        "settings": served.wanted.changed,
        "self_test": test.words if (test := served.self_test.passed) is not None else None,
        "engine": await _engine(served),
        "queue": {
            "requests": len(scheduler),
            "documents": scheduler.usage.documents,
            "tokens": scheduler.usage.tokens,
            "size_bytes": scheduler.usage.size_bytes,
            "documents_per_second": round(throughput.inputs_per_s, 2),
            "tokens_per_second": round(tokens_per_second(throughput), 1),
        },
        "cache": {
            "entries": len(served.cache),
            "memory_hits": served.cache.use.memory_hits,
            "disk_hits": served.cache.use.disk_hits,
            "misses": served.cache.use.misses,
        },
    }


def _pending(one: PendingModel, now: float) -> PendingStatus:
    return {
        "id": one.name,
        "aliases": list(one.names[1:]),
        "ref": one.wanted.ref,
        "state": one.phase,
        "since_s": round(now - one.since, 1),
        "doing": one.doing,
        "error": one.error.message if one.error is not None else None,
        "retry_after_s": one.retry_after_s(),
    }


async def _engine(served: ServedModel) -> EngineStatus:
    state = served.state
    kept = served.replicas.kept if served.replicas is not None else None
    body: EngineStatus = {
        "program": served.engine_name,
        "why": served.engine_reason,
        "replicas": served.wanted.replicas,
        "pids": served.pids,
        "starts": state.starts,
        "lost": state.lost,
        "memory_bytes": served.memory_bytes(),
        "memory": dict(served.held() or {}),
        "document_vectors": asdict(kept) if kept is not None else None,
        "log": str(served.log),
        "last_lines": await asyncio.to_thread(last_lines, served.log),
    }
    if state.error is not None:
        body["error"] = state.error.message
    return body


def _recent(series: Series) -> RecentStatus:
    def ms(values: tuple[float | None, ...]) -> list[float | None]:
        return [None if value is None else round(value * 1000, 1) for value in values]

    return {
        "step_s": series.step_s,
        "requests": list(series.requests),
        "failed": list(series.failed),
        "documents": list(series.documents),
        "median_ms": ms(series.median_s),
        "p95_ms": ms(series.p95_s),
        "waiting": list(series.waiting),
        "memory_bytes": list(series.memory_bytes),
        "lost": list(series.lost),
    }


def last_lines(log: Path) -> list[str]:
    """Return at most 40 lines from the last 32 KiB of a log file; none if it can't be read."""
    try:
        with log.open("rb") as stream:
            start = max(stream.seek(0, os.SEEK_END) - _LOG_BYTES, 0)
            stream.seek(start)
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return lines[1 if start else 0 :][-_LOG_LINES:]
