"""A replica of a model in Ray Serve: a Reranker with its own engine."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve

from rerankd import logs, propagators
from rerankd.client import Client
from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult
from rerankd.errors import EngineUnavailable, RerankdError
from rerankd.ray.routing import Route
from rerankd.ray.serve_plan import Values
from rerankd.remote_models import Phase
from rerankd.rerank_result import RerankResult
from rerankd.service import Reranker

_log = logging.getLogger("rerankd")

_PHASES: dict[str, Phase] = {"ready": "ready", "unloaded": "ready", "failed": "failed", "refused": "failed"}


# The engine is restarted meanwhile.
_FAILED_S = 5.0


@dataclass(frozen=True, slots=True)
class Report:
    """The state of a replica. `replica` is its id in Ray, `place` its name for users. `requests` are under
    way. `max_length` is None until the model was read."""

    replica: str
    place: str
    phase: Phase
    error: RerankdError | None
    requests: int
    starts: int
    max_length: int | None
    is_embedder: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """The outcome of a call, and the replica that returned it. Errors are returned, because Ray would log the
    traceback of each request that is refused, and wrap it in an exception of its own."""

    replica: str
    outcome: RerankResult | EmbedResult | RerankdError


class Replica:
    """Answers the requests to one model, or to one cascade with the models of its stages."""

    async def __init__(self, values: Values) -> None:  # type: ignore[misc]  # Ray awaits it
        settings = Settings.model_validate(values)
        logs.configure(settings.log_level, settings.log_format)
        propagators.drop_missing(os.environ)
        self._id: str = serve.get_replica_context().replica_id.unique_id
        self._refusal: RerankdError | None = None
        self._requests = 0
        self._failed_since: float | None = None
        self._reranker = Reranker(settings)
        try:
            await self._reranker.start()
        except RerankdError as error:
            # Ray would give up after three failed constructors. A replica that is not healthy is replaced for
            # as long as it takes, and tells the reason meanwhile.
            self._refusal = error
            _log.error("%s", error.message)

    async def answer(self, _: Route, request: RerankRequest, timeout_s: float, client: Client) -> Reply:
        return await self._reply(self._reranker.answer, request, timeout_s, client)

    async def embed(self, _: Route, request: EmbedRequest, timeout_s: float, client: Client) -> Reply:
        return await self._reply(self._reranker.answer_embedding, request, timeout_s, client)

    async def _reply(self, answer: Any, request: Any, timeout_s: float, client: Client) -> Reply:
        if self._refusal is not None:
            return Reply(self._id, self._refusal)
        self._requests += 1
        try:
            return Reply(self._id, await answer(request, timeout_s=timeout_s, client=client))
        except RerankdError as error:
            return Reply(self._id, error)
        finally:
            self._requests -= 1

    async def report(self) -> Report:
        """Its state, for the ingress."""
        place = f"{ray.util.get_node_ip_address()} {self._id}"
        if self._refusal is not None:
            return Report(self._id, place, "failed", self._refusal, 0, 0, None, False)
        registry = self._reranker.registry
        states = [entry.state for entry in registry.entries]
        # A cascade is as ready as its least ready stage.
        worst = min(states, key=lambda state: ("failed", "starting", "ready").index(_phase(state.phase)))
        recipes = [served.model.recipe for served in registry.answering(None)]
        return Report(
            self._id,
            place,
            _phase(worst.phase),
            worst.error,
            self._requests,
            sum(state.starts for state in states),
            min(recipe.max_length for recipe in recipes),
            len(recipes) == 1 and recipes[0].method == "embedding",
        )

    async def metrics(self) -> tuple[str, bytes]:
        """Its id, and its page for Prometheus."""
        return self._id, self._reranker.metrics.read()

    async def check_health(self) -> None:
        """Ray replaces a replica that fails this three times in a row. Raises EngineUnavailable if the model
        has been failed for a while: on another node, or with a file that has arrived, it may be served."""
        report = await self.report()
        if report.phase != "failed":
            self._failed_since = None
            return
        self._failed_since = self._failed_since or time.monotonic()
        # Ray also calls this before a replica is ready, and would give up for good after three that are not.
        if time.monotonic() - self._failed_since > _FAILED_S:
            raise EngineUnavailable(report.error.message if report.error else "The engine has failed.")

    async def __del__(self) -> None:
        # Ray awaits this when it stops a replica, after the requests under way.
        if self._refusal is None:
            await self._reranker.drain()


def _phase(phase: str) -> Phase:
    return _PHASES.get(phase, "starting")
