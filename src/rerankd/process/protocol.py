"""HTTP and JSON to a child on its UNIX socket, for every kind of engine."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from rerankd.errors import EngineError, EngineUnavailable
from rerankd.process.http import Answer, Connections


class Wire:
    """One child's HTTP. Raises EngineError only, but for `get`."""

    def __init__(self, socket: Path) -> None:
        self._http = Connections(socket)

    async def is_ready(self, timeout_s: float) -> bool:
        """Whether it answers and has loaded its model."""
        try:
            return (await self.get("/health", timeout_s)).status == 200
        except OSError:
            return False

    async def get(self, path: str, timeout_s: float) -> Answer:
        """GET. Raises TimeoutError, or another OSError."""
        async with asyncio.timeout(timeout_s):
            return await self._http.get(path)

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        """POST JSON; the status, and the answer's JSON."""
        if self._http.is_closed:
            raise EngineUnavailable("The engine was stopped before the request reached it; try again.")
        data = json.dumps(body, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
        try:
            answer = await self._http.post(path, data)
            return answer.status, answer.json()
        except OSError as error:
            raise EngineUnavailable("The engine stopped in the middle of the request; try again.") from error
        except ValueError as error:
            raise EngineError("The engine's answer is not JSON; see the engine's log.") from error

    async def close(self) -> None:
        self._http.close()
