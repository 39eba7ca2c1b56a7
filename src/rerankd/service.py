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

from rerankd import config, keys
from rerankd.backends.base import Engine
from rerankd.config import Settings
from rerankd.content import Content
from rerankd.domain import RerankRequest
from rerankd.embedding import EmbedRequest, EmbedResult, finished
from rerankd.errors import ConfigError, InvalidRequest, Misuse, Stopping
from rerankd.metrics import Metrics
from rerankd.process.states import Status
from rerankd.rerank_result import RerankResult
from rerankd.scoring.deduplicate import UniqueTexts
from rerankd.scoring.result import Scored, ranked
from rerankd.serving import metric_readings, request_checks, request_images
from rerankd.serving.admission import ANONYMOUS, Client
from rerankd.serving.document_scores import Budget, nothing_scored, score_documents, texts_to_score
from rerankd.serving.prepare_model import Model
from rerankd.serving.queue import QueuedRequest
from rerankd.serving.registry import ModelRegistry
from rerankd.serving.scheduler import WEIGHTS
from rerankd.serving.served_model import ServedModel
from rerankd.serving.text_embeddings import distinct_texts, embed_texts

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
        self, settings: Settings | None = None, *, prepared: Sequence[Model] = (), **overrides: Any
    ) -> None:
        """With `settings` None, the environment and the settings file are read. `overrides` are settings by
        name.

        `prepared` are models that `prepare` has already returned. Raises ConfigError, and DoesNotFit for a
        model that exceeds the memory budget.
        """
        settings = config.override(settings, overrides) if settings else config.from_machine(overrides)
        self.keys = keys.read(settings)
        if self.keys and not len(self.keys):
            raise ConfigError(
                f"The API key file {settings.api_keys_file} contains no key. Create one with "
                "`rerankd key new NAME`."
            )
        self.metrics = Metrics(lambda: metric_readings.of(self.registry.entries, self.registry.disk))
        self.registry = ModelRegistry(settings, self.metrics)
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
        """The first model, which answers requests that name no model."""
        return self._first().model

    @property
    def state(self) -> Status[Engine]:
        """The state of the first model's engines."""
        return self._first().state

    def _first(self) -> ServedModel:
        if not self.registry.entries:
            raise Misuse(NOT_STARTED)
        return self.registry.find(None)

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
        """Process a request: check, admit, tokenize, score each distinct text, rank by raw score.

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
        served = self.registry.find(request.model)
        request = await request_images.readable(request, served.engine, self.settings)
        budget = Budget.of(request, served.wanted.budget_ms, since)
        size_bytes = sys.getsizeof(request.query) + sum(map(sys.getsizeof, request.documents))
        weight = WEIGHTS[request.priority]
        with served.queue.admit(client, len(request.documents), size_bytes, weight) as queued:
            texts = texts_to_score(request, served)
            scored = await self._scored(served, request, queued, texts, budget, timeout_s)
        own = scored.normalization or served.model.recipe.normalization
        how = served.model.resolution.calibrated(own)
        rows = ranked(request, scored.raw, how)
        has_scores = any(value is not None for value in scored.raw)
        none = ("No document reaches the score_threshold of the request.",) * (has_scores and not rows)
        result = RerankResult(
            model=request.model or served.name,
            results=rows,
            tokens=scored.tokens,
            normalization="raw" if request.raw_scores else how.name,
            divisor=how.divisor,
            warnings=(
                request.warnings
                + served.model.resolution.warnings
                + served.self_test.doubts
                + scored.warnings
                + none
            ),
            truncated=scored.truncated,
            blank=texts.blank,
            errors=scored.document_errors,
            unscored=scored.unscored,
            cached=scored.cached,
            cached_tokens=scored.cached_tokens,
            queue_s=queued.waited_s,
            engine_s=scored.engine_s,
            total_s=time.perf_counter() - started,
        )
        self.metrics.answered(len(request.documents), len(texts.texts), result)
        return result

    async def _scored(
        self,
        served: ServedModel,
        request: RerankRequest,
        queued: QueuedRequest,
        texts: UniqueTexts,
        budget: Budget | None,
        timeout_s: float,
    ) -> Scored:
        """Load the model and score the documents, within the deadline and the time budget."""
        ends = time.monotonic() + timeout_s
        # score_documents observes the budget itself; this is for loading the model before it.
        latest = math.inf if budget is None else budget.latest
        is_loaded = False
        try:
            async with asyncio.timeout(min(ends, latest) - time.monotonic()) as limit:
                async with self.registry.use(served, request.keep_alive_s):
                    is_loaded = True
                    limit.reschedule(asyncio.get_running_loop().time() + ends - time.monotonic())
                    return await score_documents(served, request, queued, texts, budget)
        except TimeoutError:
            if latest < ends and not is_loaded:
                return nothing_scored(texts)
            raise request_checks.too_late(served, timeout_s, self.metrics) from None

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
            served = self.registry.find(requests[0].model)
            raise request_checks.too_late(served, timeout_s, self.metrics) from None

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
        timeout_s = await self.registry.setup.wait_until_read(request.model, timeout_s)
        served = self.registry.find(request.model)
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
