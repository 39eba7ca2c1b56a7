"""An engine without a backend, files, a child or token counts: another rerank server, spoken to over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

import httpx

from rerankd.backends.base import Batch, Engine, RawScores
from rerankd.errors import EngineError, EngineUnavailable


class Upstream:
    """The server at `url`, which answers POST /rerank as Jina's does. Raises EngineError only."""

    fixed_tokens = 0
    about = "another server"

    def __init__(self, url: str) -> None:
        self._http = httpx.AsyncClient(base_url=url, trust_env=False)

    async def is_ready(self, timeout_s: float = 2.0) -> bool:
        try:
            return (await self._http.get("/health", timeout=timeout_s)).is_success
        except httpx.HTTPError:
            return False

    async def shows_work(self, within_s: float) -> bool:
        return await self.is_ready(within_s)

    async def prepare(self) -> None:
        """Nothing has to be asked of it."""

    async def close(self) -> None:
        await self._http.aclose()

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """It does not say, so nothing is truncated here: its own limits hold."""
        return [0] * len(texts)

    async def score(self, batch: Batch) -> RawScores:
        return RawScores.joined([await self._score(query, texts) for query, texts, _ in batch.inputs])

    async def _score(self, query: str, texts: Sequence[str]) -> RawScores:
        try:
            answer = await self._http.post("/rerank", json={"query": query, "documents": texts})
        except (httpx.HTTPError, RuntimeError) as error:  # the latter: it was closed
            raise EngineUnavailable("The other server can't be reached.") from error
        if not answer.is_success:
            raise EngineError(f"The other server refused the request: {answer.text}")
        rows = sorted(answer.json()["results"], key=lambda row: row["index"])
        return RawScores([float(row["relevance_score"]) for row in rows], 0)


def connect(url: str) -> Engine:
    """The engine at an address: mypy sees here that it has all that an engine must have."""
    return Upstream(url)
