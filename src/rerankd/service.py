"""The whole story of a request, without HTTP: `Reranker.answer` reads as the way of a request.

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
from rerankd.domain import RerankRequest, RerankResult
from rerankd.errors import (
    ConfigError,
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    InvalidRequest,
    Misuse,
    Stopping,
)
from rerankd.metrics import Metrics
from rerankd.process.states import Status
from rerankd.scoring import deduplicate
from rerankd.scoring.deduplicate import UniqueTexts
from rerankd.scoring.result import Scored, ranked
from rerankd.serving import metric_readings
from rerankd.serving.document_scores import Budget, nothing_scored, score_documents, texts_to_score
from rerankd.serving.prepare_model import Model
from rerankd.serving.queue import ANONYMOUS, WEIGHTS, Client, QueuedRequest
from rerankd.serving.registry import ModelRegistry
from rerankd.serving.served_model import ServedModel

NOT_STARTED = (
    "This Reranker is not started. Use it as `async with Reranker() as reranker:`, or call "
    "`await reranker.start()` first and `await reranker.close()` at the end."
)


class Reranker:
    """Scores documents against a query with the models of its settings, whose engines it starts, keeps
    running and stops.

    Use it as an async context manager; entering waits until those are ready that are loaded at the start.
    Where there is no block to put it around, `start` and `close` do the same. It belongs to the process and
    the event loop that started it, and is started once: its methods raise Misuse elsewhere and before, and
    Stopping after.
    """

    def __init__(
        self, settings: Settings | None = None, *, prepared: Sequence[Model] = (), **overrides: Any
    ) -> None:
        """`settings` None reads the environment and the settings file; `overrides` are settings by name.

        `prepared` are models that `prepare` has already returned. Raises ConfigError, and DoesNotFit for a
        model that the memory budget can never hold.
        """
        settings = config.override(settings, overrides) if settings else config.from_machine(overrides)
        self.keys = keys.read(settings)
        if self.keys and not len(self.keys):
            raise ConfigError(
                f"The file of API keys {settings.api_keys_file} holds no key. Make one with "
                "`rerankd key new NAME`."
            )
        self.metrics = Metrics(lambda: metric_readings.of(self.registry.entries))
        self.registry = ModelRegistry(settings, self.metrics)
        self.registry.begin_with(prepared)
        self._is_closed = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the engines, and wait until those are ready that are loaded at the start. Raises Misuse where
        it was started before, and what keeps all models from being served."""
        if self._is_closed:
            raise Misuse("This Reranker is closed, and can't be started again. Make a new one.")
        if self.registry.owner is not None:
            raise Misuse("This Reranker is started already: enter it once, and share it.")
        try:
            await self.registry.start()
        except BaseException:
            await self.close()
            raise

    async def drain(self) -> None:
        """Take no new requests, let those under way finish for up to `drain_timeout_s`, then close."""
        await self.registry.drain()
        await self.close()

    async def close(self, *, at_once: bool = False) -> None:
        """Stop the engines and remove what they left; safe to call again, and with `at_once` to cut an
        earlier call short. In a forked process it does nothing: the engines are the other's."""
        if self.registry.owner is not None:
            if not self.registry.owner.is_this_process:
                return
            self.registry.owner.check()
        await self.registry.close(at_once=at_once)
        self._is_closed = True

    async def apply(self, settings: Settings) -> None:
        """Go on by other settings, and by the keys that are in the file now: one that was removed is refused
        at once, even where the other settings can't be taken over.

        Raises ConfigError, and what `ModelRegistry.apply` raises; then the other settings have not changed.
        """
        self.keys = await asyncio.to_thread(keys.read, settings)
        await self.registry.apply(settings)

    @property
    def settings(self) -> Settings:
        """What it works by; a reload may change it."""
        return self.registry.settings

    @property
    def model(self) -> Model:
        """The first model, which answers where a request names none."""
        return self._first().model

    @property
    def state(self) -> Status[Engine]:
        """What the engines of the first model do."""
        return self._first().state

    def _first(self) -> ServedModel:
        if not self.registry.entries:
            raise Misuse(NOT_STARTED)
        return self.registry.find(None)

    async def rerank(self, query: str, documents: Sequence[str], **options: Any) -> RerankResult:
        """Order `documents` by how well they answer `query`; `options` are RerankRequest's fields. Raises
        InvalidRequest for an invalid request, and what `answer` raises."""
        if isinstance(documents, str | bytes | Mapping):  # whose parts would be taken for documents
            kind = type(documents).__name__
            raise InvalidRequest(f"The documents are a {kind}, but must be a list of strings.")
        return await self.answer(RerankRequest(query, tuple(documents), **options))

    async def answer(
        self,
        request: RerankRequest,
        *,
        timeout_s: float | None = None,
        client: Client = ANONYMOUS,
        since: float | None = None,
    ) -> RerankResult:
        """The way of a request: check, admit, tokenize, score each text once, rank by raw value.

        `timeout_s` may shorten the deadline of the settings; `client` is who asks, and has a fair share.
        `since` is when its budget began (time.monotonic), if that was not now.

        Raises InvalidRequest for an invalid request, Overloaded where the queue is full, EngineTimeout past
        the deadline, and another EngineError where scoring failed.
        """
        started = time.perf_counter()
        since = time.monotonic() if since is None else since
        self._check_started()
        self._check_request(request)
        timeout_s = min(timeout_s or math.inf, self.settings.request_timeout_s)
        timeout_s = await self.registry.setup.wait_until_read(request.model, timeout_s)
        served = self.registry.find(request.model)
        budget = Budget.of(request, served.wanted.budget_ms, since)
        size_bytes = sys.getsizeof(request.query) + sum(map(sys.getsizeof, request.documents))
        with served.queue.admit(
            client, len(request.documents), size_bytes, weight=WEIGHTS[request.priority]
        ) as place:
            texts = texts_to_score(request, served)
            scored = await self._scored(served, request, place, texts, budget, timeout_s)
        rows = ranked(request, scored.raw, served.model.recipe.normalization)
        has_scores = any(value is not None for value in scored.raw)
        none = ("No document reaches the score_threshold of the request.",) * (has_scores and not rows)
        result = RerankResult(
            model=request.model or served.name,
            results=rows,
            tokens=scored.tokens,
            normalization="raw" if request.raw_scores else served.model.recipe.normalization.name,
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
            queue_s=place.waited_s,
            engine_s=scored.engine_s,
            total_s=time.perf_counter() - started,
        )
        self.metrics.answered(len(request.documents), len(texts.texts), result)
        return result

    async def _scored(
        self,
        served: ServedModel,
        request: RerankRequest,
        place: QueuedRequest,
        texts: UniqueTexts,
        budget: Budget | None,
        timeout_s: float,
    ) -> Scored:
        """What `score` says, before the deadline; and with a budget, before it is over."""
        ends = time.monotonic() + timeout_s
        # `score` keeps to the budget itself; this is for the load that may come before.
        latest = math.inf if budget is None else budget.latest
        is_loaded = False
        try:
            async with asyncio.timeout(min(ends, latest) - time.monotonic()) as limit:
                async with self.registry.use(served):
                    is_loaded = True
                    limit.reschedule(asyncio.get_running_loop().time() + ends - time.monotonic())
                    return await score_documents(served, request, place, texts, budget)
        except TimeoutError:
            if latest < ends and not is_loaded:
                return nothing_scored(texts)
            raise self._too_late(served, timeout_s) from None

    async def answer_all(
        self,
        requests: Sequence[RerankRequest],
        *,
        timeout_s: float | None = None,
        client: Client = ANONYMOUS,
    ) -> list[RerankResult]:
        """The answers of several requests to one model, one after the other. They are bound together by what
        one request is: so many documents, and one deadline. Raises what `answer` raises."""
        if len(requests) == 1:
            return [await self.answer(requests[0], timeout_s=timeout_s, client=client)]
        self._check_count(sum(len(request.documents) for request in requests))
        timeout_s = min(timeout_s or math.inf, self.settings.request_timeout_s)
        try:
            async with asyncio.timeout(timeout_s):
                since = time.monotonic()  # one budget for all
                return [await self.answer(request, client=client, since=since) for request in requests]
        except TimeoutError:
            raise self._too_late(self.registry.find(requests[0].model), timeout_s) from None

    def _check_started(self) -> None:
        if self.registry.owner is None:
            raise Misuse(NOT_STARTED)
        self.registry.owner.check()
        if self._is_closed:
            raise Stopping("This Reranker is closed. Ask it inside its block, or make a new one.")

    def _check_request(self, request: RerankRequest) -> None:
        if deduplicate.is_blank(request.query):
            raise InvalidRequest("The query is empty. Send the question the documents should answer.")
        if not request.documents:
            raise InvalidRequest("There are no documents. Send at least one.")
        self._check_count(len(request.documents))
        most = self.settings.max_document_characters
        for at, text in enumerate(request.documents):
            if len(text) > most:
                raise InvalidRequest(
                    f"Document {at} has {len(text)} characters; at most {most} are taken. Send it in parts, "
                    "or raise max_document_characters."
                )

    def _check_count(self, documents: int) -> None:
        most = self.settings.max_documents
        if documents > most:
            raise InvalidRequest(
                f"The request has {documents} documents; at most {most} are taken at once. Send them in "
                "parts, or raise max_documents."
            )

    def _too_late(self, served: ServedModel, timeout_s: float) -> EngineError:
        """The error of a request that passed its deadline; the engine, if it had one, is looked at."""
        self.metrics.deadlines.inc()
        state = served.state
        if state.engine is None:
            why = f" {state.error.message}" if state.error is not None else ""
            if state.phase == "unloaded":
                why = f" {served.name} waits until other models have made room for it."
            wait_s = max(math.ceil(state.until - time.monotonic()), 1)
            return EngineUnavailable(
                f"No engine was ready before the request's deadline of {timeout_s:g} s.{why}",
                retry_after_s=wait_s,
            )
        served.suspect()
        return EngineTimeout(
            f"The request took longer than {timeout_s:g} s and was dropped. Send fewer or shorter documents, "
            "or raise request_timeout_s."
        )
