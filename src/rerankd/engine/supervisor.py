"""Keeps one engine running: starts its child, waits until it is ready, and replaces it when it must.

    stopped -> starting -> ready -> stopping -> waiting -> starting ...
                  \\-> failed -(reload)-> starting      any -> stopping -> stopped

One task is the only writer of the state; everybody else awaits `ensure_ready`, or holds a `lease` while it
asks the engine something. An engine is replaced for one of four reasons, each found by a watcher of its own:

- it died;
- it is silent: three health polls in a row were not answered;
- it is stuck: a request passed its deadline, and in the margin after it the engine's own loop has shown no
  sign of work. (`/health` is answered by other threads of a llama-server than the one that computes.);
- it holds more memory than it may, or a reload was asked for: then it is replaced when nobody holds a lease.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rerankd.engine import process, reasons
from rerankd.engine.base import Connection, Engine, EngineSpec
from rerankd.engine.child import Child
from rerankd.engine.llama import LlamaClient
from rerankd.engine.restart import STABLE_AFTER_S, End, GiveUp, decide, recent
from rerankd.engine.rundir import RunDir
from rerankd.errors import EngineError, EngineStartFailed, EngineUnavailable, RerankdError

_log = logging.getLogger("rerankd.engine")

Phase = Literal["unloaded", "stopped", "starting", "ready", "waiting", "failed", "stopping"]
_FIRST_POLL_S = 0.02
_LONGEST_POLL_S = 0.25
_MOST_MISSES = 3
# A caller whose engine closed the connection learns within this time whether the engine has died.
_DEATH_NOTICE_S = 1.0
# Calls under way get so long to end before an engine is replaced all the same.
_LONGEST_LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class State:
    """What an engine is doing. `engine` is set when ready, `error` when failed or waiting, `until` (of the
    monotonic clock) when waiting. `starts` counts the children, `lost` those that went without being asked
    to."""

    phase: Phase
    engine: Engine | None = None
    error: RerankdError | None = None
    starts: int = 0
    lost: int = 0
    pid: int | None = None
    until: float = 0.0


@dataclass(frozen=True, slots=True)
class Watch:
    """When an engine is replaced: see the settings of these names."""

    health_poll_s: float = 2.0
    hang_margin_s: float = 30.0
    stable_after_s: float = STABLE_AFTER_S
    max_engine_memory: int | None = None


@dataclass(frozen=True, slots=True)
class _Loss:
    """Why an engine has to go; `kill` says that it won't listen to SIGTERM, `asked` that it did no wrong."""

    error: RerankdError
    kill: bool = False
    asked: bool = False


class Supervisor:
    """Owner of one engine and its child.

    `command` makes the child's command line for a socket path, and `connect` connects to it. `check` is run
    on each engine that has become ready, before anyone else gets it; what it raises makes the start a failed
    one. `pause` waits before a restart and `now` tells the time by which a life is long or short.
    """

    def __init__(
        self,
        spec: EngineSpec,
        command: Callable[[Path], Sequence[str]],
        *,
        run_dir: RunDir,
        log: Path,
        start_timeout_s: float,
        stop_timeout_s: float,
        watch: Watch | None = None,
        connect: Callable[[Path], Connection] = LlamaClient,
        check: Callable[[Engine], Awaitable[None]] | None = None,
        now: Callable[[], float] = time.monotonic,
        pause: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self.spec = spec
        self.log = log
        self._name = spec.path.name
        self._command = command
        self._connect = connect
        self._check = check
        self._run_dir = run_dir
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._watch = watch or Watch()
        self._now = now
        self._pause = pause
        self._state = State("stopped")
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._child: Child | None = None
        self._suspected = asyncio.Event()
        self._socket: Path | None = None
        self._unreachable = asyncio.Event()
        self._reload = asyncio.Event()
        self._leases = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @property
    def state(self) -> State:
        return self._state

    @property
    def leases(self) -> int:
        """Calls that are under way."""
        return self._leases

    def start(self) -> None:
        """Begin; returns at once. Must be called on the thread of the event loop that stays (see
        child.py)."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"supervise {self.spec.name}")

    def reload(self) -> None:
        """Try again now: start a failed or waiting engine, replace a running one between requests."""
        self._reload.set()

    def suspect(self, engine: Engine) -> None:
        """Say that a call to `engine` was not answered in time; it is replaced if it is stuck."""
        if self._state.engine is engine:
            self._suspected.set()

    async def ensure_ready(self, *, after: Engine | None = None) -> Engine:
        """Wait for a ready engine, and return it. `after` is one that has failed its caller: if it does not
        turn out to be dead, it is returned again.

        Raises what made the engine fail, or EngineUnavailable once it is stopped.
        """
        notice = time.monotonic() + _DEATH_NOTICE_S
        while True:
            state = self._state
            is_reachable = state.engine is not None and self._is_reachable()
            if state.engine is not None and not is_reachable:
                self._unreachable.set()  # it is replaced
            elif state.engine is not None and (state.engine is not after or time.monotonic() >= notice):
                return state.engine
            if state.phase == "failed" and state.error is not None:
                raise copy.copy(state.error)  # one for each: a raised error collects tracebacks
            if self._task is None:
                raise EngineUnavailable("The engine is stopped.")
            timeout_s = max(notice - time.monotonic(), 0.0) if is_reachable else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout_s)

    @contextlib.asynccontextmanager
    async def lease(self, *, after: Engine | None = None) -> AsyncIterator[Engine]:
        """A ready engine (see ensure_ready), which is not replaced without need until it is given back."""
        engine = await self.ensure_ready(after=after)
        self._leases += 1
        self._unused.clear()
        try:
            yield engine
        finally:
            self._leases -= 1
            if self._leases == 0:
                self._unused.set()

    def _is_reachable(self) -> bool:
        return self._socket is not None and self._socket.exists()

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop the engine and its child; safe to call again, and with `at_once` to cut an earlier call
        short."""
        if at_once:
            self._stop_timeout_s = 0.0
            if self._child is not None:
                self._child.kill()
        if self._task is not None:
            self._ending, self._task = self._task, None
            self._ending.cancel()
        if self._ending is not None:
            await asyncio.wait([self._ending])
        self._set("stopped")

    def _set(self, phase: Phase, **what: Any) -> None:
        lost = what.pop("lost", self._state.lost)
        starts = what.pop("starts", self._state.starts)
        self._state = State(phase, starts=starts, lost=lost, **what)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        try:
            await self._live()
        except Exception as error:  # the crash boundary of this task
            _log.exception("the supervisor of %s failed for an unexpected reason", self.spec.name)
            self._set("failed", error=EngineUnavailable(f"rerankd failed to watch its engine: {error!r}."))

    async def _live(self) -> None:
        ends: list[End] = []
        while True:
            loss, ready_for_s = await self._one_life()
            if loss.asked:
                continue
            ends = [*recent(ends, self._watch.stable_after_s), End(ready_for_s or 0.0)]
            decision = decide(ends, self._watch.stable_after_s)
            lost = self._state.lost + 1
            # A model that never loaded won't load the second time either.
            never_ready = self._state.starts == 1 and ready_for_s is None
            if never_ready or isinstance(decision, GiveUp):
                error = loss.error if never_ready else reasons.final(loss.error)
                if not never_ready:  # who waits for the first start is told, and tells it
                    _log.error("%s", error.message)
                self._set("failed", error=error, lost=lost)
                await self._reload.wait()
                ends = []
            else:
                _log.warning("%s\nIt is started again in %g s.", loss.error.message, decision.after_s)
                self._set("waiting", error=loss.error, lost=lost, until=time.monotonic() + decision.after_s)
                await _first(self._pause(decision.after_s), self._reload.wait())
            self._reload.clear()

    async def _one_life(self) -> tuple[_Loss, float | None]:
        """Start a child, and watch it until it has to go. Returns why, and for how long it was ready, if it
        ever was."""
        starts = self._state.starts + 1
        self._set("starting", starts=starts)
        try:
            socket = self._socket = self._run_dir.socket()
            child = self._child = await Child.start(self._command(socket), self.log)
        except RerankdError as error:
            return _Loss(error), None
        client = self._connect(socket)
        note = self._run_dir.note(child.pid)
        ready_at: float | None = None
        loss = _Loss(EngineUnavailable("The engine is stopped."))
        try:
            engine = await self._become_ready(child, client)
            ready_at = self._now()
            self._suspected.clear()
            self._reload.clear()
            self._set("ready", engine=engine, pid=child.pid)
            loss = await _first(
                self._until_dead(child),
                self._until_silent(child, client),
                self._until_stuck(child, client),
                self._until_grown(child),
                self._until_asked(),
                self._until_unreachable(socket),
            )
        except RerankdError as error:
            loss = _Loss(error)
        finally:
            self._set("stopping")
            if loss.asked:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._unused.wait(), _LONGEST_LEASE_S)
            await child.stop(0.0 if loss.kill else self._stop_timeout_s)
            await client.close()
            socket.unlink(missing_ok=True)
            note.unlink(missing_ok=True)
            self._child = None
        return loss, self._now() - ready_at if ready_at is not None else None

    async def _until_dead(self, child: Child) -> _Loss:
        return _Loss(EngineUnavailable(self._died(child, await child.wait())))

    async def _until_silent(self, child: Child, client: Connection) -> _Loss:
        misses = 0
        while misses < _MOST_MISSES:
            await asyncio.sleep(self._watch.health_poll_s)
            misses = 0 if await client.is_ready(self._watch.health_poll_s) else misses + 1
        return _Loss(
            EngineUnavailable(reasons.silent(self._name, misses, child.lines())),
            kill=True,
        )

    async def _until_unreachable(self, socket: Path) -> _Loss:
        """logind removes its user's folder at logout, and others clean /tmp: then open connections, and with
        them the health polls, work on, but no new one can be made."""
        while socket.exists():
            self._unreachable.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._unreachable.wait(), self._watch.health_poll_s)
        text = f"The engine's socket {socket} was removed by another program; the engine is replaced"
        _log.warning("%s between requests", text)
        return _Loss(EngineUnavailable(f"{text}; try again."), asked=True)

    async def _until_stuck(self, child: Child, client: Connection) -> _Loss:
        while True:
            await self._suspected.wait()
            self._suspected.clear()
            if not await client.shows_work(self._watch.hang_margin_s):
                return _Loss(
                    EngineUnavailable(reasons.stuck(self._name, self._watch.hang_margin_s, child.lines())),
                    kill=True,
                )

    async def _until_grown(self, child: Child) -> _Loss:
        most = self._watch.max_engine_memory
        if most is None:
            await asyncio.Event().wait()
        assert most is not None
        while True:
            held = await asyncio.to_thread(process.memory_bytes, child.pid)
            if held is not None and held > most:
                text = f"The engine held {held / 2**20:.0f} MiB, more than max_engine_memory, and is replaced"
                _log.warning("%s between requests", text)
                return _Loss(EngineUnavailable(f"{text}; try again."), asked=True)
            await asyncio.sleep(self._watch.health_poll_s)

    async def _until_asked(self) -> _Loss:
        await self._reload.wait()
        _log.info("a reload was asked for: the engine is replaced between requests")
        return _Loss(EngineUnavailable("The engine is being replaced; try again."), asked=True)

    async def _become_ready(self, child: Child, client: Connection) -> Engine:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                return await self._load(child, client)
        except TimeoutError:
            text = reasons.not_loaded(self._name, self._start_timeout_s, child.lines())
            raise EngineStartFailed(text, retry_after_s=None) from None

    async def _load(self, child: Child, client: Connection) -> Engine:
        poll_s = _FIRST_POLL_S
        while not await client.is_ready():
            if child.exit_code is not None:
                code = await child.wait()
                raise EngineStartFailed(self._died(child, code), retry_after_s=None)
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 1.5, _LONGEST_POLL_S)
        engine = client.engine(self.spec)
        try:
            await engine.prepare()
            if self._check is not None:
                await self._check(engine)
        except EngineError as error:
            if isinstance(error, EngineUnavailable):
                with contextlib.suppress(TimeoutError):
                    code = await asyncio.wait_for(child.wait(), _DEATH_NOTICE_S)
                    raise EngineStartFailed(self._died(child, code)) from None
            raise
        self._check_memory(child)
        return engine

    def _died(self, child: Child, code: int) -> str:
        return reasons.died(self._name, code, child.lines())

    def _check_memory(self, child: Child) -> None:
        """Refuse a limit that no engine of this model can keep: it would be replaced for ever."""
        most, held = self._watch.max_engine_memory, process.memory_bytes(child.pid)
        if most is not None and held is not None and held > most:
            raise EngineStartFailed(reasons.too_large(self._name, held, most), retry_after_s=None)


T = TypeVar("T")


async def _first(*ways: Coroutine[Any, Any, T]) -> T:
    """The result of the first of `ways` to end (the earliest in order, where several have); the others are
    cancelled."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return next(task for task in tasks if task.done()).result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
