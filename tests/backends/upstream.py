"""A client of another rerank server as an Engine: without a backend, model files, a child or a tokenizer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import httpx

from rerankd.backends.base import Batch, Engine, RawScores
from rerankd.backends.token_vectors import KeptVectors
from rerankd.embedding import Vectors
from rerankd.errors import EngineError, EngineUnavailable
from rerankd.scoring.engine_input import NONE, Frame, Ids


class Upstream:
    """The server at `url`, with Jina's POST /rerank. Raises only EngineError."""

    about = "another server"
    kept: KeptVectors | None = None
    uses_kept = True
    frame = Frame()

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
        """Do nothing: the server needs no initialisation."""

    async def close(self) -> None:
        await self._http.aclose()

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        """Return no token ids, because the server does not report them; so nothing is truncated here."""
        return [NONE] * len(texts)

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return [NONE] * len(texts)

    async def embed(self, batch: Batch) -> Vectors:
        raise EngineError("This server computes no vectors.")

    async def score(self, batch: Batch) -> RawScores:
        texts = defaultdict[str, list[str]](list)
        for one in batch.inputs:
            texts[one.question.query].append(one.text)
        values = {query: iter(await self._score(query, own)) for query, own in texts.items()}
        return RawScores([next(values[one.question.query]) for one in batch.inputs])

    async def _score(self, query: str, texts: Sequence[str]) -> list[float]:
        try:
            answer = await self._http.post("/rerank", json={"query": query, "documents": texts})
        except (httpx.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed
            raise EngineUnavailable("The other server can't be reached.") from error
        if not answer.is_success:
            raise EngineError(f"The other server rejected the request: {answer.text}")
        rows = sorted(answer.json()["results"], key=lambda row: row["index"])
        return [float(row["relevance_score"]) for row in rows]


def connect(url: str) -> Engine:
    """Return the client of a server. mypy checks here that Upstream implements Engine."""
    return Upstream(url)
