"""The protocol between service and engine: JSON over HTTP on a UNIX socket, shared by all backends."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from rerankd.errors import EngineError, EngineUnavailable
from rerankd.process.http import Answer, Connections


class EngineClient:
    """The base class of an engine's client. All methods but `get` raise only EngineError."""

    def __init__(self, socket: Path) -> None:
        self._http = Connections(socket)

    async def is_ready(self, timeout_s: float = 2.0) -> bool:
        """Whether the engine answers health polls and has loaded its model."""
        try:
            return (await self.get("/health", timeout_s)).status == 200
        except OSError:
            return False

    async def get(self, path: str, timeout_s: float) -> Answer:
        """Send a GET request. Raises TimeoutError or another OSError."""
        async with asyncio.timeout(timeout_s):
            return await self._http.get(path)

    async def post(self, path: str, body: dict[str, Any] | bytes) -> Any:
        """POST JSON, or raw bytes, and return the JSON of the response."""
        answer = await self._posted(path, body)
        found = _value(answer)
        if answer.status != 200:
            raise self._rejected(answer.status, found)
        return found

    async def post_binary(self, path: str, body: bytes) -> bytes:
        """POST raw bytes, and return the bytes of the response."""
        answer = await self._posted(path, body)
        if answer.status != 200:
            raise self._rejected(answer.status, _value(answer))
        return answer.body

    async def _posted(self, path: str, body: dict[str, Any] | bytes) -> Answer:
        if self._http.is_closed:
            raise EngineUnavailable("The engine was stopped before it received the request. Try again.")
        try:
            if isinstance(body, bytes):
                return await self._http.post(path, body, "application/octet-stream")
            return await self._http.post(path, _json(body))
        except OSError as error:
            raise EngineUnavailable("The engine stopped during the request. Try again.") from error

    def _rejected(self, status: int, found: Any) -> EngineError:
        message = found.get("error", found) if isinstance(found, dict) else found
        message = message.get("message", message) if isinstance(message, dict) else message
        return self._error(status, str(message))

    def _error(self, status: int, message: str) -> EngineError:
        """Return the error for a response whose status is not 200."""
        return EngineError(f"The engine rejected the request: {message}")

    async def close(self) -> None:
        self._http.close()


def _value(answer: Answer) -> Any:
    try:
        return answer.json()
    except ValueError as error:
        raise EngineError("The engine's response is not JSON. See the engine's log.") from error


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
