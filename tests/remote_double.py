"""Remote models without servers: they score a document by its length, and record what they were asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from rerankd.client import Client
from rerankd.config import Settings
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult
from rerankd.errors import RerankdError
from rerankd.remote_models import Place, RemoteModel, RemoteModels, RemoteState
from rerankd.rerank_result import RerankResult, ScoredDocument


class Double(RemoteModel):
    """A remote model. `error` is what it raises; while `gate` is not set, it does not answer."""

    is_embedder = True

    def __init__(self, *names: str, max_length: int | None = 512) -> None:
        self.names, self.max_length = names, max_length
        self.where = "2 upstream servers"
        self.error: RerankdError | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[tuple[RerankRequest | EmbedRequest, float, Client]] = []
        self._since = RemoteState()

    @property
    def state(self) -> RemoteState:
        return RemoteState("failed" if self.error else "ready", self.error, self._since.since)

    @property
    def places(self) -> Sequence[Place]:
        return (
            Place("gpu1", "ready", 0, answered=len(self.asked)),
            Place("gpu2", "failed", failed=3, error="The server refuses connections."),
        )

    def retry_after_s(self) -> int | None:
        return 7 if self.error else None

    async def answer(self, request: RerankRequest, timeout_s: float, client: Client) -> RerankResult:
        self.asked.append((request, timeout_s, client))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        order = sorted(range(len(request.documents)), key=lambda at: -len(request.documents[at]))
        rows = tuple(ScoredDocument(at, 1 - 1 / (2 + len(request.documents[at]))) for at in order)
        return RerankResult(
            model="theirs",
            results=rows[: request.top_n or None],
            tokens=5,
            normalization="sigmoid",
            warnings=("A warning of the server.",),
            cached=1,
        )

    async def embed(self, request: EmbedRequest, timeout_s: float, client: Client) -> EmbedResult:
        self.asked.append((request, timeout_s, client))
        return EmbedResult("theirs", np.ones((len(request.texts), 2), np.float32), tokens=3)


class Doubles(RemoteModels):
    """The remote models of a test. `found` is set when their places have answered."""

    models: tuple[Double, ...] = ()
    unlisted: tuple[Place, ...] = ()

    def __init__(self, *models: Double, is_alone: bool = True) -> None:
        self.models, self.is_alone = models, is_alone
        self.found = asyncio.Event()
        self.found.set()
        self.on_change = lambda: None
        self.applied: list[Settings] = []
        self.is_closed = False

    def replaces_local(self, settings: Settings) -> bool:
        return self.is_alone

    async def start(self) -> None:
        await self.found.wait()

    def apply(self, settings: Settings) -> None:
        self.applied.append(settings)

    async def close(self) -> None:
        self.is_closed = True
