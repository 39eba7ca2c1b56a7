"""Score documents: with the server that runs on this machine, else with an engine in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, NamedTuple

import httpx

from rerankd import config, network_errors
from rerankd.api.dialects.table import DEFAULT
from rerankd.config import Settings
from rerankd.errors import InvalidRequest, RemoteError
from rerankd.service import Reranker

# An agent keeps its tools open for days and uses them for minutes.
_IDLE_UNLOAD_S = 900.0
_READY_TIMEOUT_S = 2.0


class Answer(NamedTuple):
    """A response in the default dialect, and who computed it."""

    value: Mapping[str, Any]
    scored_by: str


class Scorer:
    """Answers rerank requests. An engine of its own is started at the first request that no server answers,
    and used from then on."""

    def __init__(self, settings: Settings, *, asks_server: bool) -> None:
        """`asks_server`: use a server at the address of the settings."""
        self._settings = settings
        self._asks_server = asks_server
        self._reranker: Reranker | None = None
        self._starting: asyncio.Task[Reranker] | None = None
        headers = {b"authorization": f"Bearer {settings.api_key}".encode()} if settings.api_key else {}
        self._http = httpx.AsyncClient(
            base_url=settings.local_url,
            headers=headers,
            trust_env=False,
            timeout=settings.request_timeout_s + 5,
        )

    async def rerank(self, body: Mapping[str, Any]) -> Answer:
        """Answer a request. Raises InvalidRequest, and other RerankdErrors if scoring failed."""
        if self._starting is None and self._asks_server and await self._server_answers():
            return await self._ask_server(body)
        reranker = await self._own_reranker()
        (request,) = DEFAULT.parse(dict(body))
        result = await reranker.answer(request)
        return Answer(DEFAULT.render(result, "rerank-local"), "an engine of this MCP server")

    async def close(self) -> None:
        """Stop the engine."""
        await self._http.aclose()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._reranker is not None:
            await self._reranker.close()

    async def _own_reranker(self) -> Reranker:
        """Start the engine once. A request that is cancelled meanwhile does not stop it: a client whose
        timeout is shorter than the first download would never get an answer."""
        if self._starting is None:
            self._starting = asyncio.create_task(self._start())
        starting = self._starting
        try:
            return await asyncio.shield(starting)
        finally:
            if starting.done() and self._reranker is None and self._starting is starting:
                self._starting = None  # it failed: the next request tries again

    async def _start(self) -> Reranker:
        settings = self._settings
        if settings.idle_unload_s is None:
            settings = config.override(settings, {"idle_unload_s": _IDLE_UNLOAD_S})
        reranker = Reranker(settings)
        await reranker.start()
        self._reranker = reranker
        return reranker

    async def _server_answers(self) -> bool:
        try:
            value = (await self._http.get("/ready", timeout=_READY_TIMEOUT_S)).json()
        except network_errors.ERRORS:
            return False
        return isinstance(value, dict) and "status" in value

    async def _ask_server(self, body: Mapping[str, Any]) -> Answer:
        url = self._settings.local_url
        try:
            answer = await self._http.post("/v1/rerank", json=body)
            value = answer.json()
        except network_errors.ERRORS as error:
            raise RemoteError(
                f"The request to the server at {url} failed: {network_errors.explain(error)}. Try again."
            ) from None
        if not isinstance(value, dict) or (answer.status_code == 200 and "results" not in value):
            raise RemoteError(f"The response of the server at {url} has no results.")
        if answer.status_code != 200:
            message = f"The server at {url} reports: {value.get('message', answer.text)}"
            if answer.status_code == 401:
                message += " Set it for rerankd mcp with RERANKD_API_KEY, and restart it."
            raise RemoteError(message) if answer.status_code >= 500 else InvalidRequest(message)
        return Answer(value, f"the server at {url}")
