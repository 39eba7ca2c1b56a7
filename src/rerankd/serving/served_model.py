"""One model that is served: its queue, its cache, and its engines while it is loaded."""

from __future__ import annotations

import asyncio
import copy
import logging
import math
import random
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from rerankd import machine, processes
from rerankd.backends import ladder
from rerankd.backends.base import Engine, EngineSpec, Shape
from rerankd.backends.llama import client as llama
from rerankd.backends.llama import launch
from rerankd.backends.llama.binaries import Choice
from rerankd.backends.llama.options import LlamaOptions
from rerankd.backends.openvino import chosen
from rerankd.backends.openvino.options import OpenVinoOptions
from rerankd.backends.openvino.precision import Choice as Precision
from rerankd.backends.worker import client as openvino
from rerankd.config import Settings
from rerankd.errors import EngineStartFailed, EngineUnavailable, ModelFileError, RerankdError, Unscorable
from rerankd.hub import builtin, store
from rerankd.memory import MEMORY, Bytes
from rerankd.metrics import Metrics, Reading
from rerankd.process import restart
from rerankd.process.child import Launch
from rerankd.process.life import Plan, Watch
from rerankd.process.reasons import Cause
from rerankd.process.rundir import RunDir
from rerankd.process.states import Failed, Starting, State, Status, Stopped, Stopping, Unloaded
from rerankd.process.supervisor import Supervisor
from rerankd.scoring import normalize, self_test
from rerankd.scoring.cache import ScoreCache
from rerankd.serving import second_engine
from rerankd.serving.calls import Calls
from rerankd.serving.prepare import Model, fingerprint
from rerankd.serving.queue import Bounds, FairQueue, Line
from rerankd.serving.replicas import Replicas
from rerankd.serving.safer_settings import SaferSettings
from rerankd.state import StateStore

_log = logging.getLogger("rerankd")

T = TypeVar("T")
# A load that failed takes seconds; the machine is left alone for at least as long.
_SHORTEST_RETRY_S = 1.0


class ServedModel:
    """A model between the pool, which has it loaded and unloaded, and the requests, which `ask` its engines.

    `run_dir` is the folder for sockets, `learned` what is known of this machine from earlier runs. The state
    tells what its engines do; `unloaded` where there are none.
    """

    def __init__(
        self,
        model: Model,
        settings: Settings,
        metrics: Metrics,
        run_dir: Callable[[], RunDir],
        learned: StateStore,
    ) -> None:
        self.model = model
        self.settings = settings
        self.queue = FairQueue(Line(bounds(settings), model.engine.feed, engines=model.wanted.replicas))
        self.cache = ScoreCache(settings.cache_entries, f"{model.fingerprint} {model.scoring!r}")
        self.doubts: tuple[str, ...] = ()
        self.self_test: second_engine.Passed | None = None
        self.retests = False
        self._testing = asyncio.Lock()
        self.log = store.Store(settings.home).logs / f"{_file_name(model.name)}.log"
        self._metrics = metrics
        self._run_dir = run_dir
        self._learned = learned
        self.calls = Calls(
            model.name,
            model.fingerprint,
            self._running,
            learned,
            metrics,
            log=self.log,
            patience_s=settings.hang_margin_s,
        )
        self._safer = SaferSettings(learned, model.name, model.fingerprint, _build(model))
        self._llama = model.wanted.options(LlamaOptions)
        self._replicas: Replicas | None = None
        self._is_choosing = False
        self._precision = Precision("f32", "")
        self.on_changed_file: Callable[[], None] = lambda: None
        # Why the file that has taken the model's place can't be served.
        self.why_not_read = ""
        self._error: RerankdError | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._cards: tuple[str, ...] = ()
        self._on_cards: Bytes | None = None
        self._earlier: Status[Engine] = Status()

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def engine(self) -> Choice:
        """The engine in use: the one that was chosen for the model, or the one it fell back to."""
        if "other_backend" in self._safer.steps and self.model.other_engine is not None:
            return self.model.other_engine
        return self.model.engine

    @property
    def engine_reason(self) -> str:
        """Why it is this engine, and with which settings after crashes."""
        return "; ".join(filter(None, (self.engine.reason, self._safer.words)))

    @property
    def state(self) -> Status[Engine]:
        """What the engines do; `stopping` from the moment on that no request is taken any more."""
        state = self._state()
        if not self.queue.is_closed:
            return state
        return replace(state, state=Stopped() if self._replicas is None else Stopping())

    def _state(self) -> Status[Engine]:
        if self._replicas is None:
            state: State[Engine] = Unloaded() if self._error is None else Failed(self._error, self._retry_at)
            return replace(self._earlier, state=Starting() if self._is_choosing else state)
        status = self._replicas.status
        starts, lost = self._earlier.starts + status.starts, self._earlier.lost + status.lost
        return replace(status, starts=starts, lost=lost)

    def retry_after_s(self) -> int | None:
        """Seconds until the engine is started again; None where that is not planned."""
        left_s = self.state.until - time.monotonic()
        return math.ceil(left_s) if left_s > 0 else None

    @property
    def pids(self) -> list[int]:
        """The processes of the engines that are ready."""
        return self._replicas.pids if self._replicas is not None else []

    @property
    def engine_name(self) -> str:
        """What runs the model, in words; with OpenVINO the precision of its arithmetic and why."""
        engine, ready = self.engine, self.state.engine
        if engine.kind == "openvino":
            return ready.about if ready is not None else engine.name
        number = f" (b{engine.build})" if engine.build and f"b{engine.build}" not in engine.name else ""
        return f"llama.cpp {engine.name}{number}"

    def memory_bytes(self) -> int | None:
        """What the engines hold: of a GPU's memory, as far as it is seen that they use one (then what they
        held when they were loaded, since asking takes a while), else of the machine's. None where there are
        none, or it can't be told."""
        if self.pids and self._on_cards is not None:
            return sum(self._on_cards.values())
        held = [size for pid in self.pids if (size := processes.memory_bytes(pid)) is not None]
        return sum(held) if held else None

    def held(self) -> Bytes | None:
        """What the engines hold, by device; None where there are none, or it can't be told."""
        if not self.pids or self._on_cards is None:
            size = self.memory_bytes()
            return None if size is None else {MEMORY: size}
        # The file is mapped, and what of it is on a card need not stay in memory.
        private = [processes.private_bytes(pid) or 0 for pid in self.pids]
        return {MEMORY: sum(private), **self._on_cards}

    async def load(self, cards: tuple[str, ...] = ()) -> None:
        """Start the engines, on these cards where they use any, and wait until they are ready.

        Raises RerankdError where none can be started. Whoever asks within a growing delay after that (see
        process/restart.py) is told the same at once, so that a model that can't be loaded does not keep the
        machine busy with starts.
        """
        if self._error is not None and (left_s := self._retry_at - time.monotonic()) > 0:
            error = copy.copy(self._error)
            error.retry_after_s = math.ceil(left_s)
            raise error
        self._cards = cards
        try:
            await self._start()
        except Exception as error:
            await self.unload()
            self._failures += 1
            delay_s = max(restart.delay_s(self._failures, random.random()), _SHORTEST_RETRY_S)
            self._retry_at = time.monotonic() + delay_s
            if not isinstance(error, RerankdError):
                raise
            error.retry_after_s = math.ceil(delay_s)
            self._error = error
            raise
        self._error, self._failures = None, 0
        if not self.engine.on_cpu:
            self._on_cards = await asyncio.to_thread(_on_cards, self.pids)

    async def _start(self) -> None:
        self._precision = await self._choose_precision()
        self.cache.computed_by(self._computes())
        gpus = self.model.engine.gpus
        if gpus:  # what is free there changes with what is loaded; asking takes up to a second
            gpus = await asyncio.to_thread(machine.gpus)
        spec, options = engine_spec(self.model), self._options(gpus)
        self._safer.begin(ladder.steps(self._setup(spec, options)))
        replicas = [self._supervise(at, spec, options) for at in range(self.model.wanted.replicas)]
        self._replicas = Replicas(replicas)
        self._replicas.start()
        await self._replicas.ensure_ready()

    def _options(self, gpus: tuple[machine.Gpu, ...] | None) -> launch.EngineOptions:
        return launch.EngineOptions(
            program=self.model.engine.program,
            threads=threads_of(self.model),
            gpus=gpus,
            gpu_layers=self._llama.gpu_layers,
            extra=self._llama.engine_args,
            cards=self._cards,
        )

    def _setup(self, spec: EngineSpec, options: launch.EngineOptions) -> ladder.Setup:
        other = self.model.other_engine.name if self.model.other_engine is not None else ""
        if self.model.engine.kind == "openvino":
            return ladder.Setup("openvino", precision=self._precision.precision, other=other)
        return launch.setup(spec, options, other)

    async def _choose_precision(self) -> Precision:
        """The precision of all replicas; of llama.cpp the file's types decide."""
        if self.model.engine.kind != "openvino":
            return Precision("f32", "")
        self._is_choosing = True
        try:
            return await chosen.choose(
                subject(self.model), self._learned, self.log, self.settings.start_timeout_s
            )
        finally:
            self._is_choosing = False

    def _computes(self) -> str:
        """What the values depend on beside model and texts: the engine's build, its precision and device."""
        engine, weights = self.engine, self.model.wanted.options(OpenVinoOptions).weights
        steps = f" {self._safer.steps}" if self._safer.taken else ""
        if engine.kind == "openvino":
            return f"openvino {chosen.version()} {self._precision.precision} {weights}{steps}"
        return f"{engine.program} {engine.build} {self._llama.gpu_layers} {self._llama.engine_args}{steps}"

    async def unload(self, *, at_once: bool = False) -> None:
        """Stop the engines; safe to call again, and with `at_once` to cut an earlier call short."""
        replicas = self._replicas
        if replicas is None:
            return
        await replicas.stop(at_once=at_once)
        if self._replicas is replicas:
            self._earlier = self._state()
            self._replicas = None

    def reload_failed(self) -> None:
        """Start failed engines again. What could not be loaded may be tried again at once."""
        if self._state().phase == "failed":
            self.reload()

    def reload(self) -> None:
        """Start failed engines again, replace running ones between requests, and ask texts in quarantine
        again."""
        self._error, self._failures = None, 0
        self.calls.forget()
        self._safer.forget()
        if self._replicas is not None:
            self._replicas.reload()

    def readings(self) -> list[Reading]:
        """What is read off for the metrics."""
        state, line = self.state, self.queue.line
        values: dict[str, tuple[str, float]] = {
            "engine_ready": ("1 while the engine can answer", state.engine is not None),
            "engine_starts": ("children started, the first included", state.starts),
            "engine_lost": ("children that died, hung, or would not start", state.lost),
            "engine_memory_bytes": ("memory of the engine's processes", self.memory_bytes() or 0),
            "queue_requests": ("requests under way or waiting", len(line)),
            "queue_documents": ("documents of these that are not scored yet", line.documents),
            "queue_bytes": ("bytes of text of these requests", line.size_bytes),
            "documents_per_second": ("what the engine scores while it has work", line.rate),
            "cache_entries": ("scores that are kept", len(self.cache)),
        }
        return [Reading(name, what, self.name, value) for name, (what, value) in values.items()]

    def is_changed(self) -> bool:
        """Whether the file is another one than the one that is served. Reads the disk."""
        return fingerprint(self.model.path) != self.model.fingerprint

    async def fixed_tokens(self) -> int:
        """What special tokens, prefixes and template take of the window."""
        async with self._running().lease() as engine:
            return engine.fixed_tokens

    def suspect(self) -> None:
        """Say that a call was not answered in time: engines that are stuck are replaced."""
        if self._replicas is not None:
            self._replicas.suspect()

    def _running(self) -> Replicas:
        if self._replicas is None:
            raise EngineUnavailable("The engine is stopped.")
        return self._replicas

    def _supervise(self, at: int, spec: EngineSpec, options: launch.EngineOptions) -> Supervisor[Engine]:
        settings, safer = self.settings, self._safer
        begun_with = safer.taken

        def launch_child(socket: Path) -> Launch[Engine]:
            nonlocal begun_with
            # Another file than the one that was judged may have to be scored another way.
            if self.is_changed():
                if self.model.path.exists():
                    self.on_changed_file()
                    why = f"can't be served as it is now: {self.why_not_read}"
                    why = why if self.why_not_read else "is read anew."
                    raise EngineStartFailed(f"{self.model.path} has changed and {why}")
                raise EngineStartFailed(f"{self.model.path} is gone. Put it back, or serve another one.")
            begun_with = safer.taken
            self.cache.computed_by(self._computes())
            return self._launch(spec, options, socket)

        def lost(cause: Cause, loaded: bool) -> bool:
            if begun_with != safer.taken:  # another replica was quicker
                return True
            # Memory is never a text's fault; a crash may be.
            if loaded and (cause not in ("crash", "exit", "memory") or not self._blames_engine(cause)):
                return False
            return safer.lost(cause, loaded=loaded)

        plan = Plan(
            name=spec.name,
            file_name=spec.path.name,
            launch=launch_child,
            check=self._check,
            probe=self._probe,
            run_dir=self._run_dir(),
            log=self.log if at == 0 else self.log.with_name(f"{self.log.stem}-{at + 1}.log"),
            start_timeout_s=settings.start_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
            weights_bytes=spec.shape.weights_bytes,
            watch=Watch(**settings.model_dump(include={field.name for field in fields(Watch)})),
        )
        return Supervisor(plan, safer=lost)

    def _blames_engine(self, cause: Cause) -> bool:
        return cause == "memory" or self.calls.blames_engine()

    def _launch(self, spec: EngineSpec, options: launch.EngineOptions, socket: Path) -> Launch[Engine]:
        """How an engine is started with the steps that are taken."""
        engine, steps = self.engine, self._safer.steps
        if engine.kind == "openvino":
            precision = Precision("f32", "") if "float32" in steps else self._precision
            weights = self.model.wanted.options(OpenVinoOptions).weights
            argv = openvino.argv(spec, options.threads, precision, weights, socket)
            return Launch(argv, partial(openvino.connect, spec))
        if engine is not self.model.engine:
            options = replace(options, program=engine.program, gpus=engine.gpus)
        else:
            options = replace(options, safer=steps)
        argv = launch.argv(spec, options, socket)
        return Launch(argv, partial(llama.connect, spec), launch.ENVIRONMENT, launch.ADVICE)

    async def _probe(self, engine: Engine) -> None:
        """Score one pair that is known to work. Raises EngineError."""
        answer = await engine.score(self_test.QUERY, self_test.TEXTS[:1], self.model.scoring.instruction)
        normalize.check_complete(answer.values, answer.errors)

    async def _check(self, engine: Engine) -> None:
        """The check at load (see scoring/self_test.py). Raises Unscorable where it fails, unless forced."""
        scoring = self.model.scoring
        runs = [
            await engine.score(self_test.QUERY, [self_test.TEXTS[at] for at in order], scoring.instruction)
            for order in self_test.ARRANGEMENTS
        ]
        findings = self_test.judge([run.values for run in runs], scoring.normalization)
        fatal = [finding.text for finding in findings if finding.fatal]
        for finding in findings:
            _log.warning("%s: %s.", self.name, finding.text)
        if fatal and not self.model.wanted.force:
            raise Unscorable(
                f"{self.model.path.name} loads, but its scores can't be trusted: {'; '.join(fatal)}. The "
                "file may be damaged or converted wrong: try another file of the same model. To serve it "
                "all the same, with a warning in every answer, use --force."
            )
        self.doubts = tuple(f"This model failed the check at load: {text}." for text in fatal)
        await self._compare(runs[0].values)
        await asyncio.to_thread(self._safer.is_ready)

    async def _compare(self, values: Sequence[float | None]) -> None:
        """The self-test by a second engine (second_engine.py), where none is kept. Raises Unscorable where
        the two have nothing in common, unless forced."""
        model, spec = self.model, engine_spec(self.model)
        async with self._testing:
            # The built-in file is checked by its checksum; what runs with safer settings is known to fail
            # with others; and what a llama.cpp of the user's computes is compared when it is asked for.
            asked = self.retests or not (
                model.wanted.ref == builtin.NAME or self._safer.taken or self._llama.llama_path
            )
            other = second_engine.second(model, spec, self._precision.precision, threads_of(model))
            if other is None or not asked:
                return
            key = second_engine.key(model, self._computes(), other)
            self.self_test = None if self.retests else second_engine.kept(self._learned, key)
            if self.self_test is None:
                log = self.log.with_name(f"{self.log.stem}-self-test.log")
                try:
                    found = await second_engine.run(model, spec, values, other, self._run_dir().socket(), log)
                except ModelFileError as error:
                    self.doubts += (f"{other.name} says that this model's file is damaged: {error}.",)
                    _log.warning("%s: %s", self.name, self.doubts[-1])
                    return
                if found is None:
                    return
                self.self_test = await asyncio.to_thread(
                    second_engine.keep, self._learned, key, model, other, found
                )
            self.retests = False
        if self.self_test.comparison.passed:
            return
        words = f"It {self.self_test.words}"
        _log.warning("%s: %s.", self.name, words)
        if self.self_test.comparison.is_fatal and not model.wanted.force:
            raise Unscorable(
                f"{model.path.name} loads, but its scores can't be trusted: {words}. The file may be "
                "damaged, or one of the engines does not know this model: try another file, or --engine. "
                "To serve it all the same, with a warning in every answer, use --force."
            )
        self.doubts += (f"This model failed the self-test by a second engine. {words}.",)


def _build(model: Model) -> str:
    """The engine of a model and its build; another one is tried with the better settings again."""
    engine = model.engine
    return f"openvino {chosen.version()}" if engine.kind == "openvino" else f"{engine.name} {engine.build}"


def _on_cards(pids: Sequence[int]) -> Bytes | None:
    return machine.gpu_memory(pids, machine.gpus())


def engine_spec(model: Model) -> EngineSpec:
    """All that an engine must know of the model."""
    facts = model.facts
    shape = Shape(facts.tensor_bytes, facts.block_count, facts.embedding_length, facts.kv_width)
    return EngineSpec(model.name, model.path, model.scoring, facts.control_tokens, model.exact, shape)


def threads_of(model: Model) -> int:
    """Threads of each of a model's engines."""
    return model.wanted.threads or max(machine.read().cores // model.wanted.replicas, 1)


def subject(model: Model) -> chosen.Subject:
    """The model as one that a precision is chosen for."""
    wanted = model.wanted.options(OpenVinoOptions)
    return chosen.Subject(
        model.path, model.fingerprint, model.scoring, wanted.precision, wanted.weights, threads_of(model)
    )


def bounds(settings: Settings) -> Bounds:
    """What the queue of one model may hold."""
    return Bounds(settings.max_requests, settings.max_queue_documents, settings.max_queue_bytes)


def _file_name(name: str) -> str:
    """A model's name as the name of a file."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:100].strip(".") or "model"
