"""The checks of the service for another app: host name, origin and API key."""

from __future__ import annotations

from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from rerankd.api import auth, origin
from rerankd.api.disconnect import discard
from rerankd.api.responses import error_response
from rerankd.config import Settings
from rerankd.errors import HostNotAllowed, RerankdError
from rerankd.keys import Keys


class Guarded:
    """ASGI middleware that lets a request pass only if the service with these settings would."""

    def __init__(self, app: ASGIApp, settings: Settings, keys: Keys) -> None:
        self._app = app
        self._settings = settings
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request = Request(scope, receive)
        refused = self._refusal(request)
        if refused is None:
            return await self._app(scope, receive, send)
        await discard(receive, request.headers, self._settings.max_body_bytes)
        answer = error_response(request, refused, {"connection": "close"})
        await answer(scope, receive, send)

    def _refusal(self, request: Request) -> RerankdError | None:
        has_keys = bool(self._keys)
        server = request.scope["server"][0] if request.scope.get("server") else None
        why = origin.host_refusal(request.headers.get("host"), self._settings, server, has_keys=has_keys)
        if why is not None:
            return HostNotAllowed(why)
        if has_keys:
            return auth.refusal(request, self._keys)
        return origin.work_refusal(request.headers, self._settings)
