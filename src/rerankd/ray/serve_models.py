"""The models that replicas in Ray Serve answer for, as the ingress's Reranker sees them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from rerankd import affinity
from rerankd.client import Client
from rerankd.config import Settings
from rerankd.content import Content
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult
from rerankd.errors import (
    EngineTimeout,
    EngineUnavailable,
    ModelUnavailable,
    Overloaded,
    RerankdError,
    Stopping,
)
from rerankd.process.tasks import Background
from rerankd.ray.metric_pages import joined
from rerankd.ray.replica import Reply, Report
from rerankd.ray.routing import Route
from rerankd.remote_models import Place, RemoteModel, RemoteModels, RemoteState
from rerankd.rerank_result import RerankResult

_POLL_S, _POLL_NOT_READY_S = 1.0, 0.25
# So many reports a second are asked for at most, for models with many replicas.
_REPORTS_PER_S = 100
_REPORT_TIMEOUT_S = 5.0
# Another replica may still answer after one of these.
_RETRIED = (EngineUnavailable, ModelUnavailable, Overloaded, Stopping)


class RayModel(RemoteModel):
    """One deployment. `changed` is called when its state has changed."""

    def __init__(self, names: tuple[str, ...], deployment: str, most: int, handle: DeploymentHandle) -> None:
        self.names = names
        self.deployment = deployment
        self.where = f"Ray, up to {most} replicas" if most > 1 else "Ray, 1 replica"
        self.max_length: int | None = None
        self.is_embedder = False
        self.changed: Callable[[], None] = lambda: None
        self._handle = handle
        self._calls = {name: handle.options(method_name=name) for name in ("answer", "embed")}
        self._state = RemoteState()
        self._reports: tuple[Report, ...] = ()
        self._answered: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()

    @property
    def state(self) -> RemoteState:
        return self._state

    @property
    def places(self) -> Sequence[Place]:
        return [
            Place(
                one.place,
                one.phase,
                one.requests,
                self._answered[one.replica],
                self._failed[one.replica],
                one.error.message if one.error else "",
            )
            for one in self._reports
        ]

    def retry_after_s(self) -> int | None:
        return self._state.error.retry_after_s if self._state.error else None

    async def answer(self, request: RerankRequest, timeout_s: float, client: Client) -> RerankResult:
        route = self._route(request.query, request.instruction)
        result: RerankResult = await self._ask("answer", route, request, timeout_s, client)
        return result

    async def embed(self, request: EmbedRequest, timeout_s: float, client: Client) -> EmbedResult:
        # The first text stands for the request: a repeated request meets its cache.
        first = request.texts[0] if request.texts and isinstance(request.texts[0], str) else ""
        result: EmbedResult = await self._ask("embed", self._route(first, None), request, timeout_s, client)
        return result

    def _route(self, query: Content, instruction: str | None) -> Route:
        return Route(affinity.key(self.name, query, instruction))

    async def _ask(self, call: str, route: Route, request: Any, timeout_s: float, client: Client) -> Any:
        """Call a replica, and once more if it is lost or can't answer now."""
        if self._state.phase == "failed" and not self._reports and self._state.error:
            raise self._state.error
        ends = time.monotonic() + timeout_s
        outcome = await self._call(call, route, request, timeout_s, client)
        left_s = ends - time.monotonic()
        is_lost = isinstance(outcome.outcome, EngineUnavailable) and not outcome.replica
        others = any(one.phase == "ready" and one.replica != outcome.replica for one in self._reports)
        if isinstance(outcome.outcome, _RETRIED) and left_s > 0 and (is_lost or others):
            again = Route(route.key, outcome.replica)
            outcome = await self._call(call, again, request, left_s, client)
        if isinstance(outcome.outcome, RerankdError):
            raise outcome.outcome
        return outcome.outcome

    async def _call(self, call: str, route: Route, request: Any, timeout_s: float, client: Client) -> Reply:
        """One call. The reply of a replica that was lost has no name."""
        response = self._calls[call].remote(route, request, timeout_s, client)
        try:
            async with asyncio.timeout(timeout_s):
                reply: Reply = await response
        except TimeoutError:
            response.cancel()
            return Reply("", EngineTimeout(f"{self.name} did not answer within {timeout_s:g} s."))
        except asyncio.CancelledError:
            response.cancel()
            raise
        except RayActorError as error:
            return Reply("", EngineUnavailable(f"A replica of {self.name} was lost: {type(error).__name__}."))
        except BackPressureError:
            return Reply("", Overloaded(f"All replicas of {self.name} are busy. Retry later."))
        except RayServeException as error:
            return Reply("", EngineUnavailable(f"{self.name} has no replica that can answer: {error}"))
        counter = self._failed if isinstance(reply.outcome, RerankdError) else self._answered
        counter[reply.replica] += 1
        return reply

    async def watch(self) -> None:
        """Ask the replicas for their state periodically, until cancelled."""
        while True:
            await self.update()
            least_s = _POLL_S if self._state.phase == "ready" else _POLL_NOT_READY_S
            await asyncio.sleep(max(least_s, len(self._reports) / _REPORTS_PER_S))

    async def update(self) -> None:
        """Ask all replicas for their state."""
        try:
            found = await self._handle.broadcast("report").results_async(
                timeout_s=_REPORT_TIMEOUT_S, return_exceptions=True
            )
        except DeploymentUnavailableError:
            found = []
        except TimeoutError:  # one replica hangs: Ray's health check replaces it
            return
        reports = tuple(one for one in found if isinstance(one, Report))
        error = None if reports else await asyncio.to_thread(self._why_none)
        self._take(reports, error)

    def _why_none(self) -> RerankdError | None:
        """Why no replica runs; None if one is starting."""
        app = serve.status().applications.get(self._handle.app_name)
        deployment = app.deployments.get(self.deployment) if app else None
        if deployment is None or deployment.status not in ("UNHEALTHY", "DEPLOY_FAILED"):
            return None
        return EngineUnavailable(f"Ray can't start a replica of {self.name}: {deployment.message}")

    def _take(self, reports: tuple[Report, ...], error: RerankdError | None) -> None:
        phases = {one.phase for one in reports}
        if "ready" in phases:
            new = RemoteState("ready")
        elif "starting" in phases or (not reports and error is None):
            new = RemoteState("starting")
        else:
            new = RemoteState("failed", error or next(one.error for one in reports))
        new_reports = sorted(reports, key=lambda one: one.place)
        for counts in (self._answered, self._failed):
            for gone in counts.keys() - {one.replica for one in reports}:
                del counts[gone]
        self._reports = tuple(new_reports)
        for one in reports:
            if one.max_length is not None:
                self.max_length, self.is_embedder = one.max_length, one.is_embedder
        starts = sum(one.starts for one in reports)
        is_new = (new.phase, str(new.error)) != (self._state.phase, str(self._state.error))
        since = new.since if is_new else self._state.since
        self._state = RemoteState(new.phase, new.error, since, starts)
        if is_new:
            self.changed()

    async def metrics(self) -> list[tuple[str, bytes]]:
        """The pages for Prometheus of the replicas that answer in time, with their ids."""
        with contextlib.suppress(DeploymentUnavailableError, TimeoutError):
            pages = await self._handle.broadcast("metrics").results_async(
                timeout_s=_REPORT_TIMEOUT_S, return_exceptions=True
            )
            return [page for page in pages if isinstance(page, tuple)]
        return []


class RayModels(RemoteModels):
    """All models of the application, whose names are known from the start."""

    def __init__(self, models: Sequence[RayModel]) -> None:
        self._models = tuple(models)
        self.on_change = lambda: None
        self._watching = Background()

    @property
    def models(self) -> tuple[RemoteModel, ...]:
        return self._models

    def replaces_local(self, settings: Settings) -> bool:
        return True

    async def start(self) -> None:
        for model in self._models:
            model.changed = lambda: self.on_change()
        await asyncio.gather(*(model.update() for model in self._models))
        for model in self._models:
            self._watching.begin(model.watch(), f"watch {model.name}")

    def apply(self, settings: Settings) -> None:
        pass

    async def metrics(self, own: bytes) -> bytes:
        pages = await asyncio.gather(*(model.metrics() for model in self._models))
        return joined(own, [page for some in pages for page in some])

    async def close(self) -> None:
        for task in self._watching.copy():
            task.cancel()
