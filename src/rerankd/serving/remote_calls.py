"""Pass requests on to models that are served elsewhere, within the limits of a queue, and complete the
results."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from dataclasses import replace

from rerankd import tracing
from rerankd.client import Client
from rerankd.config import Settings
from rerankd.content import text_of
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult
from rerankd.errors import Overloaded, Stopping
from rerankd.metrics import Metrics
from rerankd.remote_models import RemoteModel, RemoteModels
from rerankd.rerank_result import RerankResult
from rerankd.scoring.deduplicate import is_blank
from rerankd.serving import request_checks
from rerankd.serving.admission import QueueLimits, Usage, UsageByClient
from rerankd.serving.document_scores import Budget
from rerankd.serving.model_setup import ModelSetup


class RemoteCalls:
    """The requests that remote models are answering. Each model has the limits of a queue, and each client a
    share of them, because rerankd keeps the texts until the result is there."""

    def __init__(self, models: RemoteModels, settings: Settings, metrics: Metrics) -> None:
        self._models = models
        self._limits = QueueLimits.of(settings)
        self._metrics = metrics
        self._finding: asyncio.Task[None] | None = None
        self._usage: defaultdict[str, UsageByClient] = defaultdict(UsageByClient)
        self._is_closed = False
        self._under_way = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def begin(self, setup: ModelSetup) -> None:
        """Start to find the models, and return at once. `setup` is told when they have been found."""

        async def find() -> None:
            await self._models.start()
            setup.remote_found()

        self._models.on_change = setup.changed
        self._finding = asyncio.create_task(find())

    def apply(self, settings: Settings) -> None:
        """Use changed settings."""
        self._models.apply(settings)
        self._limits = QueueLimits.of(settings)

    def usage(self, model: RemoteModel) -> Usage:
        """The usage by requests that this model is answering."""
        return self._usage[model.name].total

    async def answer(
        self, model: RemoteModel, request: RerankRequest, client: Client, timeout_s: float, since: float
    ) -> RerankResult:
        """The result of a request to a remote model. `since` is when its time budget began. Raises
        Overloaded, Stopping, EngineTimeout after `timeout_s`, and what the model raises."""
        started = time.perf_counter()
        budget = Budget.of(request, None, since)
        sent = replace(
            request,
            model=model.name,
            return_documents=False,
            warnings=(),
            budget_ms=request.budget_ms if budget is None else max(round(budget.left_s * 1000), 1),
        )
        size_bytes = sys.getsizeof(request.query) + sum(map(sys.getsizeof, request.documents))
        async with self._admitted(model, client, len(request.documents), size_bytes, timeout_s):
            result = await model.answer(sent, timeout_s, client)
        rows = result.results
        if request.return_documents:
            rows = tuple(replace(row, text=text_of(request.documents[row.index])) for row in rows)
        self._metrics.answered(len(request.documents), _scored_texts(request, result), result)
        return replace(
            result,
            model=request.model or model.name,
            results=rows,
            warnings=(*request.warnings, *result.warnings),
            total_s=time.perf_counter() - started,
        )

    async def embed(
        self, model: RemoteModel, request: EmbedRequest, client: Client, timeout_s: float
    ) -> EmbedResult:
        """The vectors of texts, by a remote model. Raises as `answer` does."""
        started = time.perf_counter()
        size_bytes = sum(map(sys.getsizeof, request.texts))
        async with self._admitted(model, client, len(request.texts), size_bytes, timeout_s):
            result = await model.embed(replace(request, model=model.name), timeout_s, client)
        return replace(result, model=request.model or model.name, total_s=time.perf_counter() - started)

    @contextlib.asynccontextmanager
    async def _admitted(
        self, model: RemoteModel, client: Client, documents: int, size_bytes: int, timeout_s: float
    ) -> AsyncIterator[None]:
        """Count a request against the limits until the block ends, which must be within the timeout."""
        if self._is_closed:
            raise Stopping("rerankd is shutting down and accepts no new requests. Retry later.")
        usage, added = self._usage[model.name], Usage(1, documents, 0, size_bytes)
        if usage.total.requests:  # a request is always admitted if there is no other, whatever its size
            full = usage.limit_reached(self._limits, client.name, Usage(), added)
            if full is not None:
                raise Overloaded(f"{full} Retry later.")
        usage.change(client.name, Usage(), added)
        self._under_way += 1
        self._empty.clear()
        try:
            with tracing.step("upstream"):
                async with asyncio.timeout(timeout_s):
                    yield
        except TimeoutError:
            raise request_checks.too_late(model, timeout_s, self._metrics) from None
        finally:
            usage.change(client.name, added, Usage())
            self._under_way -= 1
            if not self._under_way:
                self._empty.set()

    def stop_admitting(self) -> None:
        """Admit no more requests."""
        self._is_closed = True

    async def close(self) -> None:
        """Abandon the requests that are being answered. Safe to call again."""
        if self._finding is not None:
            self._finding.cancel()
        await self._models.close()

    async def wait_empty(self) -> None:
        """Wait until no request is being answered."""
        await self._empty.wait()


def _scored_texts(request: RerankRequest, result: RerankResult) -> int:
    """How many texts had their scores computed or read from a cache, in all stages of a cascade."""
    if result.stages:
        return sum(stage.scored for stage in result.stages)
    return len({one for one in request.documents if not is_blank(one)})
