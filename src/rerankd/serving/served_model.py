"""One served model: its queue, its cache, and its engines while it is loaded."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

from rerankd.backends.base import Engine, Offer
from rerankd.backends.safer_steps import OTHER_BACKEND, Step
from rerankd.config import Settings
from rerankd.errors import EngineStartFailed, EngineUnavailable
from rerankd.hub import store
from rerankd.memory import Bytes, main_bytes
from rerankd.metrics import Metrics
from rerankd.process.child import Launch
from rerankd.process.children import Plan, Watch
from rerankd.process.failure_reasons import Cause
from rerankd.process.rundir import RunDir
from rerankd.process.states import Failed, Starting, State, Status, Stopped, Stopping, Unloaded
from rerankd.process.supervisor import Supervisor
from rerankd.scoring.inputs import Reader
from rerankd.serving import model_tokenizer
from rerankd.serving.admission import QueueLimits
from rerankd.serving.disk_caches import DiskCaches
from rerankd.serving.load_backoff import Backoff
from rerankd.serving.memory_budgets import HeldMemory, of_replica
from rerankd.serving.model_cache import ModelCache
from rerankd.serving.model_tokenizer import EngineTokenizer, ModelVocabulary
from rerankd.serving.prepare_model import Model, fingerprint
from rerankd.serving.queue import Queue
from rerankd.serving.replicas import Replicas
from rerankd.serving.retry import RetryingCaller
from rerankd.serving.run_self_test import SelfTest
from rerankd.serving.safer_settings import SaferSettings
from rerankd.serving.scheduler import Scheduler
from rerankd.state import StateStore

_log = logging.getLogger("rerankd")


class ServedModel:
    """A served model. The loader loads and unloads it; its engines score the requests in its queue.

    `run_dir` returns the folder for sockets. `learned` stores what earlier runs learned about this machine.
    `state` is `unloaded` if there are no engines, and `replicas` is then None.
    """

    def __init__(
        self,
        model: Model,
        settings: Settings,
        metrics: Metrics,
        run_dir: Callable[[], RunDir],
        learned: StateStore,
        disk: DiskCaches,
    ) -> None:
        self.model = model
        self.name, self.names, self.wanted = model.name, model.names, model.wanted
        self.settings = settings
        self.cache = ModelCache(model, settings, disk, learned)
        self.log = store.Store(settings.home).log_of(model.name)
        self._metrics, self._run_dir, self._learned = metrics, run_dir, learned
        self._vocabulary = ModelVocabulary(model.metadata)
        self.self_test = SelfTest(model, self._vocabulary, learned, lambda: run_dir().socket(), self.log)
        self.caller = RetryingCaller(
            model.name,
            model.fingerprint,
            self._running,
            learned,
            metrics,
            reader=self.reader,
            has_blocks=lambda: self.engine.capabilities.scope == "block",
            out_of_memory=self._ran_out_of_memory,
            log=self.log,
            patience_s=settings.hang_margin_s,
        )
        self.queue = Queue(
            Scheduler(QueueLimits.of(settings), engines=model.wanted.replicas),
            lambda: self.engine.policy,
            self.caller.score,
        )
        self._safer = SaferSettings(learned, model.name, model.fingerprint, model.engine.build)
        self.replicas: Replicas | None = None
        self._is_settling, self._settled = False, model.engine
        self.on_changed_file: Callable[[], None] = lambda: None
        self.why_not_read = ""  # the reason why a file that replaced the model's can't be served
        self._backoff, self._memory = Backoff(), HeldMemory()
        self._cards: tuple[str, ...] = ()
        self._earlier: Status[Engine] = Status()

    def __str__(self) -> str:
        return self.name

    @property
    def engine(self) -> Offer:
        """How the model runs: on the backend chosen for it, or on its fallback."""
        if OTHER_BACKEND in self._safer.steps and (other := self.model.selection.fallback) is not None:
            return other
        return self._settled

    @property
    def _steps(self) -> tuple[Step, ...]:
        """The safer settings of the current engine."""
        return () if OTHER_BACKEND in self._safer.steps else self._safer.steps

    @property
    def engine_reason(self) -> str:
        """Why this engine was chosen, and any safer settings after crashes."""
        return "; ".join(filter(None, (self.engine.reason, self._safer.words)))

    @property
    def state(self) -> Status[Engine]:
        """The state of the engines; `stopping` as soon as no requests are admitted."""
        state = self._state()
        if not self.queue.is_closed:
            return state
        return replace(state, state=Stopped() if self.replicas is None else Stopping())

    def _state(self) -> Status[Engine]:
        if self.replicas is None:
            error = self._backoff.error
            state: State[Engine] = Unloaded() if error is None else Failed(error, self._backoff.retry_at)
            return replace(self._earlier, state=Starting() if self._is_settling else state)
        status = self.replicas.status
        starts, lost = self._earlier.starts + status.starts, self._earlier.lost + status.lost
        return replace(status, starts=starts, lost=lost)

    def retry_after_s(self) -> int | None:
        """Seconds until the engine is restarted; None if no restart is planned."""
        left_s = self.state.until - time.monotonic()
        return math.ceil(left_s) if left_s > 0 else None

    @property
    def pids(self) -> list[int]:
        """The process ids of the ready engines."""
        return self.replicas.pids if self.replicas is not None else []

    @property
    def engine_name(self) -> str:
        """The engine's own description if it has one, else the title of the backend's offer."""
        ready = self.state.engine
        return (ready.about if ready is not None else "") or self.engine.title

    def memory_bytes(self) -> int | None:
        """The memory that counts for the model (see memory.main_bytes)."""
        return main_bytes(self.held() or {})

    def held(self) -> Bytes | None:
        """See HeldMemory.by_device."""
        return self._memory.by_device(self.pids)

    async def load(self, cards: tuple[str, ...] = ()) -> None:
        """Start the engines, on these GPUs if they use any (see eviction.Load), and wait for them.

        Raises RerankdError if none can be started. Requests within a growing delay after that (see
        process/restart_delay.py) get the same error at once, so that a model that can't be loaded does not
        keep the machine busy.
        """
        self._backoff.check()
        self._cards = cards
        try:
            await self._start()
        except Exception as error:
            await self.unload()
            self._backoff.failed(error)
            raise
        self._backoff.clear()
        if not self.engine.on_cpu:
            await self._memory.measure_gpus(self.pids)

    async def _start(self) -> None:
        offer = self.model.engine
        self._is_settling = True
        try:
            timeout_s = self.settings.start_timeout_s
            self._settled = await offer.backend.settle(offer, self._learned, self.log, timeout_s)
        finally:
            self._is_settling = False
        await self.cache.identify()
        steps = self._settled.backend.steps(self._settled, self._cards)
        self._safer.begin((*steps, *self.model.selection.last_steps))
        replicas = [self._supervise(at) for at in range(self.wanted.replicas)]
        self.replicas = Replicas(replicas)
        self.replicas.start()
        if not self.engine.capabilities.tokenizes:
            self._vocabulary.begin()  # while the engine starts
        await self.replicas.ensure_ready()

    def _computes(self) -> str:
        """What the scores depend on besides model and texts (see Backend.identity)."""
        return self.engine.backend.identity(self.engine, self._steps)

    async def unload(self, *, at_once: bool = False) -> None:
        """Stop the engines. Safe to call again; `at_once` then ends an earlier call."""
        if (replicas := self.replicas) is None:
            return
        await replicas.stop(at_once=at_once)
        if self.replicas is replicas:
            self._earlier = self._state()
            self.replicas = None
            await self._vocabulary.drop()

    def reload_failed(self) -> None:
        """Restart failed engines, and allow the next load at once."""
        if self._state().phase == "failed":
            self.reload()

    def reload(self) -> None:
        """Restart failed engines now and running ones between requests, and clear the quarantine."""
        self._backoff.clear()
        self.caller.forget()
        self.queue.scheduler.batch_size.reset()
        self._safer.forget()
        if self.replicas is not None:
            self.replicas.reload()

    def is_changed(self) -> bool:
        """Whether the file has changed since it was read, or its patched copy is missing. Reads the disk."""
        return fingerprint(self.model.path) != self.model.fingerprint or not self.engine.spec.path.exists()

    async def reader(self) -> Reader:
        """The Reader for this model's texts. Raises the error that keeps an engine or its vocabulary from
        becoming ready."""
        running = self.engine
        if not running.capabilities.tokenizes:
            return model_tokenizer.reader(running, await self._vocabulary.tokenizer())
        async with self._running().pick().lease() as engine:
            own = EngineTokenizer(engine.frame, self.caller.encode, self.caller.ends)
        return model_tokenizer.reader(running, own)

    def _ran_out_of_memory(self) -> None:
        self.queue.scheduler.batch_size.halve()
        _log.warning("%s: its engine ran out of memory; the batch size is halved until a reload", self.name)

    def suspect(self) -> None:
        """Report that a call timed out. Engines that hang are restarted."""
        if self.replicas is not None:
            self.replicas.suspect()

    def _running(self) -> Replicas:
        if self.replicas is None:
            raise EngineUnavailable("The engine is stopped.")
        return self.replicas

    def _supervise(self, at: int) -> Supervisor[Engine]:
        settings, safer, spec = self.settings, self._safer, self.model.spec
        begun_with = safer.taken

        def launch_child(socket: Path) -> Launch[Engine]:
            nonlocal begun_with
            # A changed file may need another recipe.
            if self.is_changed():
                if not self.model.path.exists():
                    raise EngineStartFailed(
                        f"{self.model.path} is missing. Restore it, or serve another model."
                    )
                self.on_changed_file()
                why = f"can't be served in its new form: {self.why_not_read}"
                why = why if self.why_not_read else "is being read again."
                raise EngineStartFailed(f"{self.model.path} has changed and {why}")
            begun_with = safer.taken
            self.cache.set_engine(self._computes())
            cards = of_replica(at, self.engine, self._cards)
            launch = self.engine.backend.launch(self.engine, self._steps, cards, socket)
            return launch.within(self.cache.engine_environment)

        def lost(cause: Cause, loaded: bool) -> bool:
            if begun_with != safer.taken:  # another replica has already taken the next step
                return True
            # Running out of memory is never blamed on a text, but a crash may be.
            is_crash = cause in ("crash", "exit")
            if loaded and cause != "memory" and not (is_crash and self.caller.blames_engine()):
                return False
            return safer.lost(cause, loaded=loaded)

        plan = Plan(
            name=spec.name,
            file_name=spec.path.name,
            launch=launch_child,
            check=self._check,
            probe=lambda engine: self.self_test.probe(engine, self.engine),
            run_dir=self._run_dir(),
            log=self.log if at == 0 else self.log.with_name(f"{self.log.stem}-{at + 1}.log"),
            start_timeout_s=settings.start_timeout_s,
            stop_timeout_s=settings.stop_timeout_s,
            weights_bytes=spec.shape.weights_bytes,
            watch=Watch(**settings.model_dump(include={field.name for field in fields(Watch)})),
        )
        return Supervisor(plan, safer=lost)

    async def _check(self, engine: Engine) -> None:
        """Run the self-test on a loaded engine. Raises Unscorable if it fails, unless forced."""
        await self.cache.check_unchanged()
        await self.self_test.check(engine, self.engine, self._computes(), is_safer=bool(self._safer.taken))
        await asyncio.to_thread(self._safer.is_ready)
