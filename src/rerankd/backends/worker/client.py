"""The service's side of the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rerankd.backends.base import Batch, Engine, EngineSpec, RawScores
from rerankd.errors import EngineError, InputTooLong
from rerankd.process.protocol import Wire

# Calls that only tokenise, side by side; the others are held back by the queue.
_COUNTS = 4
# A text that is tokenised together with a prefix may take a token more than alone.
_SLACK = 2


class WorkerClient:
    """One worker's HTTP (see server.py). Raises EngineError only."""

    def __init__(self, socket: Path) -> None:
        self._wire = Wire(socket)
        self._counting = asyncio.Semaphore(_COUNTS)

    async def is_ready(self, timeout_s: float = 2.0) -> bool:
        return await self._wire.is_ready(timeout_s)

    async def shows_work(self, within_s: float) -> bool:
        """Whether the computing thread takes a step within so many seconds."""
        try:
            async with asyncio.timeout(within_s):
                before = (await self._wire.get("/work", within_s)).json()["steps"]
                await self._wire.get(f"/work?after={before}", within_s)
        except TimeoutError:
            return False
        except (OSError, ValueError, KeyError):
            pass  # it is dying, which is seen elsewhere
        return True

    async def info(self) -> dict[str, Any]:
        """What the worker says of itself."""
        try:
            answer: dict[str, Any] = (await self._wire.get("/info", 30)).json()
        except (OSError, ValueError) as error:
            raise EngineError(f"The engine does not say what it runs: {error!r}.") from error
        return answer

    async def count(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text."""
        async with self._counting:
            counts: list[int] = (await self._post("/count", {"texts": list(texts)}))["counts"]
        return counts

    async def ids(self, query: str, text: str) -> list[Any]:
        """What the model reads of a pair, or of a query and a text."""
        ids: list[Any] = (await self._post("/ids", {"query": query, "text": text}))["ids"]
        return ids

    async def score(self, query: str, texts: Sequence[str]) -> RawScores:
        answer = await self._post("/score", {"query": query, "texts": list(texts)})
        return RawScores(answer["values"], answer["tokens"])

    async def close(self) -> None:
        await self._wire.close()

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        status, answer = await self._wire.post(path, body)
        if status != 200:
            text = answer.get("error", answer) if isinstance(answer, dict) else answer
            kind = InputTooLong if status == 413 else EngineError
            raise kind(f"The engine refused the request: {text}")
        found: dict[str, Any] = answer
        return found


class WorkerEngine(Engine):
    """A cross-encoder with a rank head (raw: its logit) or an embedding model (raw: the cosine)."""

    def __init__(self, spec: EngineSpec, client: WorkerClient) -> None:
        self.scoring = spec.scoring
        self.about = ""
        self.fixed_tokens = 0
        self._client = client

    async def is_ready(self, timeout_s: float = 2.0) -> bool:
        return await self._client.is_ready(timeout_s)

    async def shows_work(self, within_s: float) -> bool:
        return await self._client.shows_work(within_s)

    async def close(self) -> None:
        await self._client.close()

    async def prepare(self) -> None:
        said = await self._client.info()
        self.about = said["about"]
        self.fixed_tokens = said["around_pair"]
        if self.scoring.method == "embedding":
            prefixes = (self.scoring.query_prefix, self.scoring.document_prefix)
            self.fixed_tokens = said["around_text"] + max(await self.count_tokens(prefixes)) + _SLACK

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return await self._client.count(texts)

    async def ids(self, query: str, text: str) -> list[Any]:
        """What the model reads of a pair: its ids; for an embedding model those of each."""
        return await self._client.ids(*self._prefixed(query, [text]))

    async def score(self, batch: Batch) -> RawScores:
        parts = []
        for asked, _, texts in batch.by_query():
            query, *prefixed = self._prefixed(asked, texts)
            parts.append(await self._client.score(query, prefixed))
        return RawScores.joined(parts)

    def _prefixed(self, query: str, texts: Sequence[str]) -> tuple[str, ...]:
        if self.scoring.method != "embedding":
            return (query, *texts)
        before = self.scoring.document_prefix
        return (self.scoring.query_prefix + query, *(before + text for text in texts))


def connect(spec: EngineSpec, socket: Path) -> WorkerEngine:
    """The engine behind a worker's socket."""
    return WorkerEngine(spec, WorkerClient(socket))
