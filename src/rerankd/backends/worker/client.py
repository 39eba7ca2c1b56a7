"""The service's side of the worker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rerankd.backends.base import Batch, Engine, RawScores
from rerankd.backends.worker import protocol
from rerankd.errors import EngineError, InputTooLong
from rerankd.process.protocol import EngineClient
from rerankd.scoring.engine_input import NONE, Frame, Ids


class WorkerEngine(EngineClient, Engine):
    """A worker's HTTP (see server.py). It holds a cross-encoder with a rank head (raw: its logit) or an
    embedding model (raw: the cosine). It has no tokenizer."""

    about = ""
    frame = Frame()

    async def shows_work(self, within_s: float) -> bool:
        """Whether a forward pass ends within `within_s`, or none is under way."""
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
            self.about = (await self.get("/info", 30)).json()["about"]
        except (OSError, ValueError) as error:
            raise EngineError(f"The engine does not say what it runs: {error!r}.") from error

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        return [NONE] * len(texts)

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return [NONE] * len(texts)

    async def score(self, batch: Batch) -> RawScores:
        return RawScores((await self.post("/score", protocol.render(batch.inputs)))["values"])

    def _error(self, status: int, said: str) -> EngineError:
        if status == 413:
            return InputTooLong(f"The engine refused the request: {said}")
        return super()._error(status, said)
