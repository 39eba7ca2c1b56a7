"""The ingress in Ray Serve: speaks HTTP in all dialects, and has no model of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from rerankd import logs, propagators
from rerankd.api.app import create_app
from rerankd.config import Settings
from rerankd.errors import RerankdError
from rerankd.process.tasks import Background
from rerankd.ray.serve_models import RayModel, RayModels
from rerankd.ray.serve_plan import Values
from rerankd.service import Reranker

_log = logging.getLogger("rerankd")


class _OneRequestId:
    """Ray's proxy adds the request's x-request-id to the response. So this leaves out the app's, if it is the
    same."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        added = [one for one in scope.get("headers", ()) if one[0] == b"x-request-id"]

        async def without(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [one for one in message["headers"] if one not in added]}
            await send(message)

        await self._app(scope, receive, without)


@serve.ingress()
class Ingress:
    """The complete service, whose models are deployments."""

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self,
        values: Values,
        models: Sequence[tuple[tuple[str, ...], str, int]],
        handles: Mapping[str, DeploymentHandle],
    ) -> None:
        """`models`: names, deployment and most replicas of each. `handles` are by deployment."""
        settings = Settings.model_validate(values)
        logs.configure(settings.log_level, settings.log_format)
        propagators.drop_missing(os.environ)
        remote = RayModels([RayModel(names, name, most, handles[name]) for names, name, most in models])
        self._reranker = Reranker(settings, remote=remote)
        self._tasks = Background()
        # It accepts requests while the models start, as on one machine.
        await self._reranker.registry.begin()
        self._tasks.begin(self._start(), "start")

    async def _start(self) -> None:
        try:
            await self._reranker.registry.start()
        except RerankdError as error:  # Ray goes on starting replicas
            _log.error("%s", error.message)

    def __serve_build_asgi_app__(self) -> Any:
        return _OneRequestId(create_app(reranker=self._reranker))

    async def __del__(self) -> None:
        for task in self._tasks.copy():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reranker.drain()
