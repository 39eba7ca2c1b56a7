"""The client of a worker, used by the service."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from rerankd.backends.base import Batch, Engine, RawScores
from rerankd.backends.token_vectors import KeptVectors
from rerankd.backends.worker import protocol
from rerankd.embedding import Vectors
from rerankd.errors import EngineError, InputTooLong
from rerankd.process.protocol import EngineClient
from rerankd.scoring.block_scores import Block
from rerankd.scoring.engine_input import NONE, Frame, Ids


class WorkerEngine(EngineClient, Engine):
    """The client of one worker (see server.py). A worker has no tokenizer."""

    about = ""
    frame = Frame()

    async def shows_work(self, within_s: float) -> bool:
        """Whether a forward pass ends within `within_s` seconds, or none is running."""
        try:
            async with asyncio.timeout(within_s):
                before = (await self.get("/work", within_s)).json()["steps"]
                await self.get(f"/work?after={before}", within_s)
        except TimeoutError:
            return False
        except (OSError, ValueError, KeyError):
            pass  # it is exiting, which the supervisor detects
        return True

    async def prepare(self) -> None:
        try:
            self.about = (await self.get("/info", 30)).json()["about"]
        except (OSError, ValueError) as error:
            raise EngineError(f"The engine's response to /info can't be read: {error!r}.") from error

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        return [NONE] * len(texts)

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return [NONE] * len(texts)

    async def score(self, batch: Batch) -> RawScores:
        path = "/score" if self.uses_kept else "/score?anew"
        answer = await self.post(path, protocol.render(batch.inputs))
        if kept := answer.get("kept"):
            self.kept = KeptVectors.parse(kept)
        errors = {int(at): why for at, why in answer.get("errors", {}).items()}
        if (vectors := answer.get("vectors")) is None:
            return RawScores(answer["values"], errors)
        try:
            *documents, query = protocol.parse_vectors(vectors, len(batch.inputs) + 1)
        except ValueError as error:
            raise EngineError(f"The engine's vectors can't be read: {error!r}.") from error
        return RawScores(answer["values"], block=Block(np.stack(documents), query))

    async def embed(self, batch: Batch) -> Vectors:
        data = await self.post_binary("/embed", protocol.render(batch.inputs))
        try:
            return protocol.parse_embeddings(data, len(batch.inputs))
        except ValueError as error:
            raise EngineError(f"The engine's vectors can't be read: {error}.") from error

    def _error(self, status: int, message: str) -> EngineError:
        if status == 413:
            return InputTooLong(f"The engine rejected the request: {message}")
        return super()._error(status, message)
