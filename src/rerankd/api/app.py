"""The app, and the lifespan that starts and stops the engine with it.

app = create_app(settings)                              # a whole app
app = FastAPI(lifespan=rerankd.lifespan(settings))      # or in one of your own:
app.include_router(rerankd.router)
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exception_handlers import http_exception_handler
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Mount

from rerankd import __version__
from rerankd.api import page
from rerankd.api.dialects.table import hint
from rerankd.api.origin import Gate
from rerankd.api.responses import error_response, plain_path
from rerankd.api.routes import router
from rerankd.config import Settings, from_machine
from rerankd.errors import NoSuchMethod, NoSuchPath
from rerankd.service import Reranker

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[Any]]


def lifespan(settings: Settings | None = None, inner: Lifespan | None = None) -> Lifespan:
    """A lifespan for a FastAPI app: the engine is ready before the first request and stopped after the last.

    `settings` None reads the environment and the settings file. `inner` is a lifespan that the app already
    has; it runs inside, and what it yields is passed on. Apps that are mounted in the app by then, such as
    `create_app()`, whose own lifespan does not run there, have the same engine.
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
    """The app, and the apps that are mounted in it, at any depth."""
    yield app
    for route in app.routes:
        if isinstance(route, Mount) and isinstance(route.app, Starlette):
            yield from _with_mounted(route.app)


def create_app(settings: Settings | None = None, *, reranker: Reranker | None = None) -> FastAPI:
    """The whole service as an app.

    With `reranker`, one that the caller has entered and will leave; else the app's lifespan runs its own.
    `settings` None are the reranker's, or else read from the environment and the settings file. Raises
    ConfigError.
    """
    settings = settings or (reranker.settings if reranker is not None else from_machine())
    app = FastAPI(
        title="rerankd",
        version=__version__,
        description="Reranker models on your own machine, with scores you can trust.",
        lifespan=None if reranker is not None else lifespan(settings),
        # They load scripts from elsewhere; the page has a reference of its own at /docs.
        docs_url=None,
        redoc_url=None,
    )
    if reranker is not None:
        app.state.rerankd = reranker
    if settings.api_prefix:
        app.include_router(router, prefix=settings.api_prefix, include_in_schema=False)
        app.include_router(page.router(settings.api_prefix))
    app.include_router(router)
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
        return await http_exception_handler(request, error)  # of a dependency that somebody added
    path = request.scope["path"]
    where = hint(plain_path(path))
    if status == 405:
        allow = getattr(error, "headers", None)
        return error_response(request, NoSuchMethod(f"{request.method} {path} is not served. {where}"), allow)
    return error_response(request, NoSuchPath(f"There is nothing at {path}. {where}"))
