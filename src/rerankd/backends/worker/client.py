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


class WorkerEngine(Wire, Engine):
    """A worker's HTTP (see server.py). It holds a cross-encoder with a rank head (raw: its logit) or an
    embedding model (raw: the cosine)."""

    about = ""
    fixed_tokens = 0

    def __init__(self, spec: EngineSpec, socket: Path) -> None:
        super().__init__(socket)
        self.scoring = spec.scoring
        self._counting = asyncio.Semaphore(_COUNTS)

    async def shows_work(self, within_s: float) -> bool:
        """Whether the computing thread takes a step within `within_s`."""
        try:
            async with asyncio.timeout(within_s):
                before = (await self.get("/work", within_s)).json()["steps"]
                await self.get(f"/work?after={before}", within_s)
        except TimeoutError:
            return False
        except (OSError, ValueError, KeyError):
            pass  # it is dying, which is seen elsewhere
        return True

    async def prepare(self) -> None:
        try:
            said = (await self.get("/info", 30)).json()
        except (OSError, ValueError) as error:
            raise EngineError(f"The engine does not say what it runs: {error!r}.") from error
        self.about = said["about"]
        self.fixed_tokens = said["around_pair"]
        if self.scoring.method == "embedding":
            prefixes = (self.scoring.query_prefix, self.scoring.document_prefix)
            self.fixed_tokens = said["around_text"] + max(await self.count_tokens(prefixes)) + _SLACK

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        async with self._counting:
            counts: list[int] = (await self.post("/count", {"texts": list(texts)}))["counts"]
        return counts

    async def ids(self, query: str, text: str) -> list[Any]:
        """What the model reads of a pair: its ids; for an embedding model those of each."""
        query, text = self._prefixed(query, [text])
        ids: list[Any] = (await self.post("/ids", {"query": query, "text": text}))["ids"]
        return ids

    async def score(self, batch: Batch) -> RawScores:
        return RawScores.joined([await self._score(query, texts) for query, texts, _ in batch.inputs])

    async def _score(self, query: str, texts: Sequence[str]) -> RawScores:
        query, *texts = self._prefixed(query, texts)
        answer = await self.post("/score", {"query": query, "texts": texts})
        return RawScores(answer["values"], answer["tokens"])

    def _prefixed(self, query: str, texts: Sequence[str]) -> tuple[str, ...]:
        if self.scoring.method != "embedding":
            return (query, *texts)
        before = self.scoring.document_prefix
        return (self.scoring.query_prefix + query, *(before + text for text in texts))

    def _error(self, status: int, said: str) -> EngineError:
        if status == 413:
            return InputTooLong(f"The engine refused the request: {said}")
        return super()._error(status, said)
