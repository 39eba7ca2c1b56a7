"""The FastAPI app, and the lifespan that starts and stops the engines with it.

app = create_app(settings)                              # the complete app
app = FastAPI(lifespan=rerankd.lifespan(settings))      # or as part of your own app:
app.include_router(rerankd.router)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount

from rerankd import __version__
from rerankd.api import page, traces
from rerankd.api.dialects import ollama
from rerankd.api.dialects.table import hint
from rerankd.api.origin import Gate
from rerankd.api.responses import error_response, plain_path, use_dialect
from rerankd.api.routes import root_router, router
from rerankd.config import Settings, from_machine
from rerankd.errors import NoSuchMethod, NoSuchPath
from rerankd.service import Reranker

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]


def lifespan(settings: Settings | None = None, inner: Lifespan | None = None) -> Lifespan:
    """Return a lifespan for a FastAPI app: it starts a Reranker before the first request and stops it at the
    end.

    With `settings` None, the settings come from the environment and the settings file. `inner` is the app's
    own lifespan: it runs inside this one, and its state is passed on. Apps that are mounted in the app, such
    as `create_app()`, use the same Reranker, because FastAPI does not run the lifespan of a mounted app.
    """

    @contextlib.asynccontextmanager
    async def run(app: FastAPI) -> AsyncIterator[Any]:
        async with Reranker(settings or from_machine()) as reranker:
            for one in _with_mounted(app):
                one.state.rerankd = reranker
            if inner is None:
                yield None
                return
            async with inner(app) as state:
                yield state

    return run


def _with_mounted(app: Starlette) -> Iterator[Starlette]:
    """Yield the app and all apps that are mounted in it, at any depth."""
    yield app
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, Starlette):
            yield from _with_mounted(route.app)


def create_app(settings: Settings | None = None, *, reranker: Reranker | None = None) -> FastAPI:
    """Return the complete service as an app.

    `reranker` is a Reranker that the caller enters and exits; without it, the app's lifespan creates one.
    With `settings` None, the settings are those of `reranker`, or else come from the environment and the
    settings file. Raises ConfigError.
    """
    settings = settings or (reranker.settings if reranker is not None else from_machine())
    sender = traces.from_environment(os.environ)
    inner = sender.lifespan if sender is not None else None
    app = FastAPI(
        title="rerankd",
        version=__version__,
        description="Serves reranker models on your own machine, with scores you can trust.",
        lifespan=inner if reranker is not None else lifespan(settings, inner),
        # FastAPI's pages load scripts from other hosts; rerankd's own page has the reference at /docs.
        docs_url=None,
        redoc_url=None,
        # FastAPI 0.16x can make spans and logs of its own, with texts of errors; rerankd's are in traces.py.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    app.state.rerankd_traces = sender
    if reranker is not None:
        app.state.rerankd = reranker
    if settings.api_prefix:
        app.include_router(router, prefix=settings.api_prefix, include_in_schema=False)
        app.include_router(page.router(settings.api_prefix))
    app.include_router(router)
    app.include_router(root_router)
    app.include_router(page.router())
    app.add_middleware(Gate)
    app.add_exception_handler(404, _not_routed)
    app.add_exception_handler(405, _not_routed)
    # FastAPI makes its routes ready when one is first looked up, which takes 0.3 s: no request should wait.
    for route in app.routes:
        route.matches({"type": "http", "method": "GET", "path": "/nothing", "headers": []})
    return app


async def _not_routed(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    if isinstance(error, HTTPException) and error.detail != HTTPStatus(status).phrase:
        return await http_exception_handler(request, error)  # raised by a dependency of the surrounding app
    path = request.scope["path"]
    where = hint(plain_path(path))
    if (
        PurePosixPath(plain_path(path)).parent.name == "api"
    ):  # such as /api/pull: Ollama's clients print its error
        use_dialect(request, ollama.DIALECT)
    if status == 405:
        allow = getattr(error, "headers", None)
        return error_response(
            request, NoSuchMethod(f"{request.method} is not allowed for {path}. {where}"), allow
        )
    return error_response(request, NoSuchPath(f"The path {path} does not exist. {where}"))
