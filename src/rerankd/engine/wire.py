"""HTTP to a child on its UNIX socket, for every kind of engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from rerankd.errors import EngineError, EngineTimeout, EngineUnavailable


class Wire:
    """One child's HTTP. Raises EngineError only, but for `get`."""

    def __init__(self, socket: Path) -> None:
        self._http = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(socket)),
            base_url="http://engine",
            timeout=None,
            trust_env=False,
        )

    async def is_ready(self, timeout_s: float) -> bool:
        """Whether it answers and has loaded its model."""
        try:
            return (await self.get("/health", timeout_s)).status_code == 200
        except httpx.TransportError:
            return False

    async def get(self, path: str, timeout_s: float) -> httpx.Response:
        """GET. Raises httpx.TimeoutException, or another httpx.TransportError."""
        return await self._http.get(path, timeout=timeout_s)

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """POST JSON; the status, and the answer's JSON."""
        if self._http.is_closed:
            raise EngineUnavailable("The engine was stopped before the request reached it; try again.")
        try:
            response = await self._http.post(path, json=body)
            return response.status_code, response.json()
        except httpx.TimeoutException as error:
            raise EngineTimeout("The engine took too long to answer.") from error
        except httpx.TransportError as error:
            raise EngineUnavailable("The engine stopped in the middle of the request; try again.") from error
        except ValueError as error:
            raise EngineError("The engine's answer is not JSON; see the engine's log.") from error

    async def close(self) -> None:
        await self._http.aclose()
