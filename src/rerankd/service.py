"""The Reranker class: admit, score and rank requests, without HTTP. `Reranker.answer` shows the steps.

async with Reranker() as reranker:
    result = await reranker.rerank("what is a panda?", ["a bear of China", "a kind of bread"])
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Self

from rerankd import config, keys, tracing
from rerankd.backends.base import Engine
from rerankd.client import ANONYMOUS, Client
from rerankd.config import Settings
from rerankd.config.cascade import Cascade
from rerankd.content import Content
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult, finished
from rerankd.errors import ConfigError, InvalidRequest, Misuse, Stopping
from rerankd.metrics import Metrics
from rerankd.process.states import Status
from rerankd.remote_models import RemoteModels
from rerankd.rerank_result import RerankResult
from rerankd.serving import metric_readings, request_checks, request_images
from rerankd.serving.document_scores import Budget
from rerankd.serving.prepare_model import Model
from rerankd.serving.registry import ModelRegistry
from rerankd.serving.score_stages import Deadline, ModelStage, answered, score_in_stages
from rerankd.serving.served_model import ServedModel
from rerankd.serving.text_embeddings import distinct_texts, embed_texts
from rerankd.upstreams import Upstreams

NOT_STARTED = (
    "This Reranker has not been started. Use `async with Reranker() as reranker:`, or call "
    "`await reranker.start()` first and `await reranker.close()` at the end."
)


class Reranker:
    """Scores documents for a query with the models of its settings. It starts, supervises and stops their
    engines.

    Use it as an async context manager; entering waits until the preloaded models are ready. Without a block,
    call `start` and `close`. It belongs to the process and the event loop that started it, and can be started
    once. Its methods raise Misuse in another process or loop and before the start, and Stopping after
    `close`.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        prepared: Sequence[Model] = (),
        remote: RemoteModels | None = None,
        **overrides: Any,
    ) -> None:
        """With `settings` None, the environment and the settings file are read. `overrides` are settings by
        name.

        `prepared` are models that `prepare` has already returned, `remote` those that are served elsewhere.
        Raises ConfigError, and DoesNotFit for a model that exceeds the memory budget.
        """
        settings = config.override(settings, overrides) if settings else config.from_machine(overrides)
        self.keys = keys.read(settings)
        if self.keys and not len(self.keys):
            raise ConfigError(
                f"The API key file {settings.api_keys_file} contains no key. Create one with "
                "`rerankd key new NAME`."
            )
        self.metrics = Metrics(lambda: metric_readings.of(self.registry))
        self.registry = ModelRegistry(settings, self.metrics, remote or Upstreams(settings))
        self.registry.begin_with(prepared)
        self._is_closed = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the engines, and wait until the preloaded models are ready. Raises Misuse if it was started
        before, and the first model's error if no model can be served."""
        if self._is_closed:
            raise Misuse("This Reranker is closed and can't be restarted. Create a new one.")
        if self.registry.owner is not None:
            raise Misuse("This Reranker is already started. Start it once and share it.")
        try:
            await self.registry.start()
        except BaseException:
            await self.close()
            raise

    async def drain(self) -> None:
        """Admit no new requests, wait up to `drain_timeout_s` for the others to finish, then close."""
        await self.registry.drain()
        await self.close()

    async def close(self, *, at_once: bool = False) -> None:
        """Stop the engines and remove their files. Safe to call again; `at_once` then ends an earlier call.
        In a forked process it does nothing."""
        if self.registry.owner is not None:
            if not self.registry.owner.is_this_process:
                return
            self.registry.owner.check()
        await self.registry.close(at_once=at_once)
        self._is_closed = True

    async def apply(self, settings: Settings) -> None:
        """Apply changed settings, and read the API key file again. A removed key is rejected at once.

        Raises ConfigError, and what `ModelRegistry.apply` raises; then the other settings have not changed.
        """
        self.keys = await asyncio.to_thread(keys.read, settings)
        await self.registry.apply(settings)

    @property
    def settings(self) -> Settings:
        """The current settings; a reload may change them."""
        return self.registry.settings

    @property
    def model(self) -> Model:
        """The model that answers requests that name no model; of a cascade, the last stage's."""
        return self._first().model

    @property
    def state(self) -> Status[Engine]:
        """The state of this model's engines."""
        return self._first().state

    def _first(self) -> ServedModel:
        if not self.registry.all:
            raise Misuse(NOT_STARTED)
        return self.registry.answering(None)[-1]

    async def rerank(self, query: Content, documents: Sequence[Content], **options: Any) -> RerankResult:
        """Rank `documents` by relevance to `query`. `options` are RerankRequest's fields. Raises
        InvalidRequest for an invalid request, and what `answer` raises."""
        if isinstance(documents, str | bytes | Mapping):  # their elements would be taken for documents
            raise InvalidRequest(f"documents is a {type(documents).__name__}, but must be a list of strings.")
        return await self.answer(RerankRequest(query, tuple(documents), **options))

    async def answer(
        self,
        request: RerankRequest,
        *,
        timeout_s: float | None = None,
        client: Client = ANONYMOUS,
        since: float | None = None,
    ) -> RerankResult:
        """Process a request: check, admit, tokenize, score each distinct text, rank by raw score. A cascade
        does so in stages (see serving/score_stages.py).

        `timeout_s` may shorten the deadline of the settings. `client` is the sender, which gets a fair share.
        `since` is when its time budget began (time.monotonic), if that was before now.

        Raises InvalidRequest, Overloaded if the queue is full, EngineTimeout after the deadline, and another
        EngineError if scoring failed.
        """
        started = time.perf_counter()
        since = time.monotonic() if since is None else since
        self._check_started()
        request_checks.check(request, self.settings)
        timeout_s = min(timeout_s or math.inf, self.settings.request_timeout_s)
        timeout_s = await self.registry.setup.wait_until_read(request.model, timeout_s)
        if (remote := self.registry.remote_model(request.model)) is not None:
            return await self.registry.remote_calls.answer(remote, request, client, timeout_s, since)
        ends = time.monotonic() + timeout_s
        cascade, planned = await self._planned(request)
        budget_ms = cascade.budget_ms if cascade else planned[0].served.wanted.budget_ms
        deadline = Deadline(timeout_s, ends, Budget.of(request, budget_ms, since))
        outcomes = await score_in_stages(self.registry, planned, client, deadline, self.metrics)
        name = cascade.name if cascade else planned[0].served.name
        result = answered(request, planned, outcomes, name, time.perf_counter() - started)
        texts = sum(len(outcome.scored.texts.texts) for outcome in outcomes)
        self.metrics.answered(len(request.documents), texts, result)
        tracing.count(documents=len(request.documents), tokens=result.tokens, cached=result.cached)
        return result

    async def _planned(self, request: RerankRequest) -> tuple[Cascade | None, list[ModelStage]]:
        """The cascade that the request is for, and the models that score it, each with the request as it can
        read it."""
        cascade, models = self.registry.cascade(request.model), self.registry.answering(request.model)
        planned = []
        for served, stage in zip(models, cascade.stages if cascade else (None,), strict=True):
            readable = await request_images.readable(request, served.engine, self.settings)
            keep, margin = (stage.keep, stage.margin) if stage else (None, None)
            planned.append(ModelStage(served, readable, keep, margin))
            if readable.has_images:  # images are fetched once
                request = readable
        if models != self.registry.answering(request.model):  # a reload while images were fetched
            return await self._planned(request)
        return cascade, planned

    async def answer_all(
        self,
        requests: Sequence[RerankRequest],
        *,
        timeout_s: float | None = None,
        client: Client = ANONYMOUS,
    ) -> list[RerankResult]:
        """Process several requests to one model in turn, within the limits of one request: its number of
        documents, and one deadline. Raises what `answer` raises."""
        if len(requests) == 1:
            return [await self.answer(requests[0], timeout_s=timeout_s, client=client)]
        request_checks.check_count(sum(len(one.documents) for one in requests), self.settings)
        timeout_s = min(timeout_s or math.inf, self.settings.request_timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                since = time.monotonic()  # one time budget for all
                return [await self.answer(request, client=client, since=since) for request in requests]
        except TimeoutError:
            model = self.registry.entries_of(requests[0].model)[-1]
            raise request_checks.too_late(model, timeout_s, self.metrics) from None

    async def embed(self, texts: Sequence[str], **options: Any) -> EmbedResult:
        """Return the vectors of texts, by an embedding model. `options` are EmbedRequest's fields. Raises
        InvalidRequest for an invalid request, and what `answer` raises."""
        if isinstance(texts, str | bytes | Mapping):
            raise InvalidRequest(f"texts is a {type(texts).__name__}, but must be a list of strings.")
        return await self.answer_embedding(EmbedRequest(tuple(texts), **options))

    async def answer_embedding(
        self,
        request: EmbedRequest,
        *,
        timeout_s: float | None = None,
        client: Client = ANONYMOUS,
    ) -> EmbedResult:
        """Process a request for vectors. Raises what `answer` raises."""
        started = time.perf_counter()
        self._check_started()
        request_checks.check_texts(request.texts, "Text", self.settings)
        timeout_s = min(timeout_s or math.inf, self.settings.request_timeout_s)
        name: str | None = ""
        while name != (
            name := self.registry.embedder_name(request.model)
        ):  # a model that was read may not be one
            timeout_s = await self.registry.setup.wait_until_read(name, timeout_s)
        if (remote := self.registry.remote_model(name)) is not None:
            return await self.registry.remote_calls.embed(remote, request, client, timeout_s)
        served = self.registry.find(name)
        texts = distinct_texts(request, served)
        size_bytes = sum(map(sys.getsizeof, request.texts))
        with served.queue.admit(client, len(request.texts), size_bytes) as queued:
            try:
                async with asyncio.timeout(timeout_s), self.registry.use(served, request.keep_alive_s):
                    loaded = time.perf_counter()
                    found = await embed_texts(request, served, texts, queued)
            except TimeoutError:
                raise request_checks.too_late(served, timeout_s, self.metrics) from None
        return EmbedResult(
            model=request.model or served.name,
            vectors=finished(found.vectors, request),
            tokens=found.tokens,
            cached_tokens=found.cached_tokens,
            truncated=found.truncated,
            warnings=served.model.resolution.warnings + served.self_test.doubts,
            load_s=loaded - started,
            total_s=time.perf_counter() - started,
        )

    def _check_started(self) -> None:
        if self.registry.owner is None:
            raise Misuse(NOT_STARTED)
        self.registry.owner.check()
        if self._is_closed:
            raise Stopping("This Reranker is closed. Use it inside its block, or create a new one.")
