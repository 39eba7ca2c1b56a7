"""Keeps one engine running: starts its child, waits until it is ready, and replaces it when it must.

    stopped -> starting -> ready <-> checking      ready -> stopping -> waiting | failed -> starting ...
                    \\-> waiting | failed                         any -> stopping -> stopped

No state is final: an engine that was lost is started again after a delay (see restart.py) for as long as the
supervisor runs. `waiting` is a short delay, and requests wait with it. `failed` is a long one, or a model
that has never loaded: requests are told at once what is wrong and when the next start is.

One task is the only writer of the state; everybody else awaits `ensure_ready`, or holds a `lease` while it
asks the engine something. An engine is replaced for one of five reasons, each found by a watcher of its own:

- it died;
- it is silent: three health polls in a row were not answered;
- it is stuck: a request passed its deadline, and in the margin after it the engine's own loop has shown no
  sign of work. (An engine may answer health polls in other threads than the one that computes.);
- it is useless: three calls in a row ended in errors. After the first one nobody gets it before it has scored
  a pair that is known to work;
- it holds more memory than it may, or a reload was asked for: then it is replaced without a failed request.
  The next one is started beside it where there is room for two, else after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
import os
import random
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from rerankd import machine, processes
from rerankd.errors import EngineError, EngineStartFailed, EngineUnavailable, RerankdError
from rerankd.process import growth, reasons, restart
from rerankd.process.child import Child, EngineT, Launch
from rerankd.process.leases import Leases
from rerankd.process.reasons import Cause
from rerankd.process.rundir import RunDir

_log = logging.getLogger("rerankd.engine")

Phase = Literal["unloaded", "stopped", "starting", "ready", "checking", "waiting", "failed", "stopping"]
_FIRST_POLL_S = 0.02
_LONGEST_POLL_S = 0.25
_MOST_MISSES = 3
_MOST_ERRORS = 3
# A caller whose engine closed the connection learns within this time whether the engine has died.
_DEATH_NOTICE_S = 1.0
# A process that crashes may take seconds to end on a busy machine, the more so where it writes a core file.
_FATE_S = 5.0
# Calls under way get so long to end before an engine is replaced all the same.
_LONGEST_LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class State(Generic[EngineT]):
    """What an engine is doing, and `since` when. `engine` is set when ready, `error` when failed or waiting,
    `until` when the next start follows these two; both times are of the monotonic clock. `starts` counts the
    children, `lost` those that went without being asked to."""

    phase: Phase
    engine: EngineT | None = None
    error: RerankdError | None = None
    starts: int = 0
    lost: int = 0
    pid: int | None = None
    until: float = 0.0
    since: float = field(default_factory=time.monotonic)

    def retry_after_s(self, now: float) -> int:
        """Whole seconds until the next start, at least 1."""
        return max(math.ceil(self.until - now), 1)


@dataclass(frozen=True, slots=True)
class Watch:
    """When an engine is replaced: see the settings of these names."""

    health_poll_s: float = 2.0
    hang_margin_s: float = 30.0
    max_engine_memory: int | None = None


@dataclass(frozen=True, slots=True)
class _Loss:
    """Why an engine has to go. `kill`: send SIGKILL, the process does not react to SIGTERM."""

    error: RerankdError
    cause: Cause
    kill: bool = False


@dataclass(eq=False)
class _Life(Generic[EngineT]):
    """One child from its start to its end."""

    child: Child
    client: EngineT
    socket: Path
    note: Path
    memory_kills: int
    advice: reasons.Advice
    engine: EngineT | None = None
    leases: Leases = field(default_factory=Leases)
    suspected: asyncio.Event = field(default_factory=asyncio.Event)
    erred: asyncio.Event = field(default_factory=asyncio.Event)
    unreachable: asyncio.Event = field(default_factory=asyncio.Event)
    errors: int = 0
    fails_on_known: bool = False


class Supervisor(Generic[EngineT]):
    """Owner of one engine and its child.

    `name` is the model's, `file_name` its file's, and the weights in it have `weights_bytes`. `launch` says
    how to start a child for a socket path. `safer` is told why an engine went and whether it had become
    ready, and returns whether the next start differs: then a failed start is no failure yet.
    `check` is run on each engine that has become ready, before anyone else gets it; what it raises makes it
    a failed start. `probe` scores one pair that is known to work, for an engine that gave an error; by
    default `check` does. `lacks_room` says in words why there is no room for a second engine beside a
    process, "" where there is. `pause` waits before a restart, and `chance` is a random number for its
    length (see restart.py).
    """

    def __init__(
        self,
        name: str,
        launch: Callable[[Path], Launch[EngineT]],
        *,
        file_name: str,
        weights_bytes: int = 0,
        run_dir: RunDir,
        log: Path,
        start_timeout_s: float,
        stop_timeout_s: float,
        watch: Watch | None = None,
        safer: Callable[[Cause, bool], bool] = lambda cause, loaded: False,
        check: Callable[[EngineT], Awaitable[None]] | None = None,
        probe: Callable[[EngineT], Awaitable[None]] | None = None,
        lacks_room: Callable[[int], str] = machine.lacks_room_beside,
        chance: Callable[[], float] = random.random,
        pause: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self.name = name
        self._weights_bytes = weights_bytes
        self.log = log
        self._file_name = file_name
        self._launch = launch
        self._safer = safer
        self._check = check
        self._probe = probe or check
        self._lacks_room = lacks_room
        self._run_dir = run_dir
        self._start_timeout_s = start_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._watch = watch or Watch()
        self._chance = chance
        self._pause = pause
        self._state: State[EngineT] = State("stopped")
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._stopped: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._reload = asyncio.Event()
        self._life: _Life[EngineT] | None = None
        # Every child that runs: beside the engine in use perhaps its successor, and its predecessor.
        self._lives: set[_Life[EngineT]] = set()
        self._ends: set[asyncio.Task[None]] = set()
        self._fates: weakref.WeakKeyDictionary[EngineT, Cause] = weakref.WeakKeyDictionary()
        self._losses = 0
        self._outgrown = 0
        self._was_ready = False
        self._start_cause: Cause = "start"

    @property
    def state(self) -> State[EngineT]:
        return self._state

    @property
    def leases(self) -> int:
        """Calls that are under way."""
        return self._life.leases.count if self._life is not None else 0

    def start(self) -> None:
        """Begin; returns at once. Must be called on the thread of the event loop that stays (see
        child.py)."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"supervise {self.name}")

    def reload(self) -> None:
        """Try again now: start a failed or waiting engine, replace a running one between requests."""
        self._reload.set()

    def suspect(self, engine: EngineT) -> None:
        """Say that a call to `engine` was not answered in time; it is replaced if it is stuck."""
        if self._life is not None and self._life.engine is engine:
            self._life.suspected.set()

    def answered(self, engine: EngineT) -> None:
        """Say that `engine` has scored what a client asked for: it works."""
        if self._life is not None and self._life.engine is engine:
            self._losses = self._life.errors = 0

    def erred(self, engine: EngineT, message: str) -> None:
        """Say that `engine` gave an error instead of scores. Nobody gets it until it has scored a known
        pair; after three errors in a row it is replaced."""
        _log.warning("the engine for %s gave an error instead of scores: %s", self._file_name, message)
        if self._life is not None and self._life.engine is engine:
            self._life.errors += 1
            self._life.erred.set()
            if self._state.engine is engine:
                self._set("checking", pid=self._life.child.pid)

    def owns(self, engine: EngineT) -> bool:
        """Whether `engine` is one of this supervisor's, also one that has gone."""
        return engine in self._fates or any(life.engine is engine for life in self._lives)

    async def fate(self, engine: EngineT) -> Cause | None:
        """Why `engine` went; None where it still runs some seconds after it closed a connection."""
        notice = time.monotonic() + _FATE_S
        while engine not in self._fates and (left_s := notice - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), left_s)
        return self._fates.get(engine)

    def known_fate(self, engine: EngineT) -> Cause | None:
        """Why `engine` went, as far as that is known now."""
        return self._fates.get(engine)

    async def verdict(self, engine: EngineT) -> Cause | None:
        """Why `engine` is replaced after an error; None where it scores a known pair, and goes on."""
        while self._life is not None and self._life.engine is engine and self._state.phase == "checking":
            await self._changed.wait()
        return self._fates.get(engine)

    async def ensure_ready(self, *, after: EngineT | None = None) -> EngineT:
        """Wait for a ready engine, and return it. `after` is one that has failed its caller: if it does not
        turn out to be dead, it is returned again.

        Raises what made the engine fail, with the time of the next start, or EngineUnavailable once it is
        stopped.
        """
        notice = time.monotonic() + _DEATH_NOTICE_S
        while True:
            state = self._state
            is_reachable = state.engine is not None and self._is_reachable()
            if self._life is not None and state.engine is not None and not is_reachable:
                self._life.unreachable.set()  # it is replaced
            elif state.engine is not None and (state.engine is not after or time.monotonic() >= notice):
                return state.engine
            if state.phase == "failed" and state.error is not None and not self._reload.is_set():
                error = copy.copy(state.error)  # one for each: a raised error collects tracebacks
                error.retry_after_s = state.retry_after_s(time.monotonic())
                raise error
            if self._task is None:
                raise EngineUnavailable("The engine is stopped.")
            timeout_s = max(notice - time.monotonic(), 0.0) if is_reachable else None
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), timeout_s)

    @contextlib.asynccontextmanager
    async def lease(self, *, after: EngineT | None = None, alone: bool = False) -> AsyncIterator[EngineT]:
        """A ready engine (see ensure_ready), which is not replaced without need until it is given back;
        `alone`: no other call has it meanwhile."""
        while True:
            engine = await self.ensure_ready(after=after)
            assert self._life is not None
            leases = self._life.leases
            await leases.enter(alone=alone)
            if self._state.engine is engine:
                break
            leases.leave()  # it went while this call waited
        try:
            yield engine
        finally:
            leases.leave()

    def _is_reachable(self) -> bool:
        return self._life is not None and self._life.socket.exists()

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop the engine and its child; safe to call again, and with `at_once` to cut an earlier call
        short."""
        self._stopping.set()
        if at_once:
            self._stop_timeout_s = 0.0
            for life in self._lives:
                life.child.kill()
        if self._task is not None:
            self._stopped, self._task = self._task, None
            self._stopped.cancel()
        if self._stopped is not None:
            await asyncio.wait([self._stopped, *self._ends])
            # A successor may have become ready at the moment of the cancellation.
            await asyncio.gather(*self._ends, *(self._finish(life, kill=False) for life in self._lives))
        self._set("stopped")

    def _set(self, phase: Phase, **what: Any) -> None:
        lost = what.pop("lost", self._state.lost)
        starts = what.pop("starts", self._state.starts)
        self._state = State(phase, starts=starts, lost=lost, **what)
        self._changed.set()
        self._changed = asyncio.Event()

    async def _run(self) -> None:
        while True:
            loaded = True
            try:
                loss = await self._live()
            except RerankdError as error:
                loss, loaded = _Loss(error, self._start_cause), False
            except Exception as error:  # the crash boundary of this task
                _log.exception("the supervisor of %s failed for an unexpected reason", self.name)
                loss = _Loss(
                    EngineUnavailable(f"rerankd failed to watch its engine: {error!r}. See its log."), "start"
                )
            if loss.cause == "requested":
                continue
            if self._safer(loss.cause, loaded) and not loaded:
                _log.warning("%s", loss.error.message)
                self._set("starting", lost=self._state.lost + 1)
            else:
                await self._wait_after(loss)

    async def _wait_after(self, loss: _Loss) -> None:
        """The delay before the next start; a reload ends it."""
        self._losses += 1
        delay_s = restart.delay_s(self._losses, self._chance())
        until, lost = time.monotonic() + delay_s, self._state.lost + 1
        if not self._was_ready:
            # Who waits for the first load tells of it.
            _log.log(
                logging.WARNING if self._losses > 1 else logging.INFO,
                "%s\nThe next try is in %.3g s.",
                loss.error.message,
                delay_s,
            )
            self._set("failed", error=loss.error, lost=lost, until=until)
        elif delay_s > restart.PATIENCE_S:
            error = reasons.failing(self.name, loss.error, delay_s)
            _log.error("%s", error.message)
            self._set("failed", error=error, lost=lost, until=until)
        else:
            _log.warning("%s\nIt is started again in %.3g s.", loss.error.message, delay_s)
            self._set("waiting", error=loss.error, lost=lost, until=until)
        await _first(self._pause(delay_s), self._reload.wait())
        if self._reload.is_set():  # somebody has mended something
            self._losses = 0
            self._reload.clear()

    async def _live(self) -> _Loss:
        """Start an engine and watch it, and its successors as long as they take over from each other. Returns
        why the last one went."""
        self._set("starting", starts=self._state.starts + 1)
        life = await self._begin()
        while True:
            try:
                self._take_over(life)
                loss = await self._watch_over(life)
                successor = None
                if loss.cause == "requested":
                    loss, successor = await self._succeed(life, loss)
                if successor is None:
                    if life.engine is not None:
                        self._fates[life.engine] = loss.cause
                    self._set("stopping")
                    if loss.cause == "requested":
                        await self._drain(life)
            except BaseException:
                self._set("stopping")
                await self._end(life)
                raise
            if successor is None:
                await self._end(life, kill=loss.kill)
                return loss
            self._retire(life)
            life = successor

    def _take_over(self, life: _Life[EngineT]) -> None:
        self._life = life
        self._was_ready = True
        self._reload.clear()
        self._set("ready", engine=life.engine, pid=life.child.pid)

    async def _succeed(self, life: _Life[EngineT], loss: _Loss) -> tuple[_Loss, _Life[EngineT] | None]:
        """A successor that is ready, started beside the engine that has to go; None where that one has to go
        first, or has gone."""
        lack = await asyncio.to_thread(self._lacks_room, life.child.pid)
        if lack:
            _log.info("%s: the engine for %s ends before the next one starts", lack, self._file_name)
            return loss, None

        async def begin() -> _Life[EngineT] | _Loss:
            while True:
                self._state = replace(self._state, starts=self._state.starts + 1)
                try:
                    return await self._begin()
                except RerankdError as error:
                    _log.warning("no engine could be started beside the old one: %s", error.message)
                    if not self._safer(self._start_cause, False):
                        return loss

        found: _Life[EngineT] | _Loss = await _first(begin(), self._until_dead(life))
        return (loss, found) if isinstance(found, _Life) else (found, None)

    async def _drain(self, life: _Life[EngineT]) -> None:
        """Wait until no call uses the engine, for so long as calls may take."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(_first(life.leases.unused(), _wait(self._stopping)), _LONGEST_LEASE_S)

    def _retire(self, life: _Life[EngineT]) -> None:
        """End an engine that has a successor when its last call has ended."""

        async def retire() -> None:
            await self._drain(life)
            await self._finish(life, kill=False)

        self._in_background(retire())

    async def _begin(self) -> _Life[EngineT]:
        """Start a child, and wait until it can score. Raises RerankdError."""
        socket = self._run_dir.socket()
        kills = processes.memory_kills()
        self._start_cause = "start"
        launch = self._launch(socket)
        child = await Child.start(launch.argv, self.log, {**launch.environment, **os.environ}, launch.advice)
        note = self._run_dir.note(child.pid)
        life = _Life(child, launch.connect(socket), socket, note, kills, launch.advice)
        self._lives.add(life)
        try:
            life.engine = await self._become_ready(life)
        except BaseException:
            await self._end(life)
            raise
        return life

    async def _end(self, life: _Life[EngineT], *, kill: bool = False) -> None:
        """End a child. It ends even if the caller is cancelled meanwhile: `stop` waits for it."""
        await asyncio.shield(self._in_background(self._finish(life, kill=kill)))

    def _in_background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=f"end an engine of {self.name}")
        self._ends.add(task)
        task.add_done_callback(self._ends.discard)
        return task

    async def _finish(self, life: _Life[EngineT], *, kill: bool) -> None:
        if life.engine is not None and life.engine not in self._fates:  # who asks it learns so at once
            self._fates[life.engine] = "requested"
            self._changed.set()
            self._changed = asyncio.Event()
        await life.child.stop(0.0 if kill else self._stop_timeout_s)
        await life.client.close()
        life.socket.unlink(missing_ok=True)
        life.note.unlink(missing_ok=True)
        self._lives.discard(life)
        if self._life is life:
            self._life = None

    async def _watch_over(self, life: _Life[EngineT]) -> _Loss:
        return await _first(
            self._until_dead(life),
            self._until_silent(life),
            self._until_stuck(life),
            self._until_useless(life),
            self._until_grown(life),
            self._until_asked(),
            self._until_unreachable(life),
        )

    async def _until_dead(self, life: _Life[EngineT]) -> _Loss:
        code = await life.child.wait()
        return _Loss(EngineUnavailable(self._died(life, code)), self._cause(life, code))

    async def _until_silent(self, life: _Life[EngineT]) -> _Loss:
        misses = 0
        while misses < _MOST_MISSES:
            await asyncio.sleep(self._watch.health_poll_s)
            misses = 0 if await life.client.is_ready(self._watch.health_poll_s) else misses + 1
        text = reasons.silent(self._file_name, misses, life.child.lines())
        return _Loss(EngineUnavailable(text), "hang", kill=True)

    async def _until_unreachable(self, life: _Life[EngineT]) -> _Loss:
        """logind removes its user's folder at logout, and others clean /tmp: then open connections, and with
        them the health polls, work on, but no new one can be made."""
        while life.socket.exists():
            life.unreachable.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(life.unreachable.wait(), self._watch.health_poll_s)
        text = f"The engine's socket {life.socket} was removed by another program; the engine is replaced"
        _log.warning("%s between requests", text)
        return _Loss(EngineUnavailable(f"{text}; try again."), "requested")

    async def _until_stuck(self, life: _Life[EngineT]) -> _Loss:
        while True:
            await life.suspected.wait()
            life.suspected.clear()
            if not await life.client.shows_work(self._watch.hang_margin_s):
                text = reasons.stuck(self._file_name, self._watch.hang_margin_s, life.child.lines())
                return _Loss(EngineUnavailable(text), "hang", kill=True)

    async def _until_useless(self, life: _Life[EngineT]) -> _Loss:
        while True:
            await life.erred.wait()
            life.erred.clear()
            while life.errors < _MOST_ERRORS and not await self._scores(life):
                pass
            if life.errors >= _MOST_ERRORS:
                text = reasons.useless(self._file_name, life.errors)
                return _Loss(EngineUnavailable(text), "useless" if life.fails_on_known else "errors")
            if not life.erred.is_set():
                self._set("ready", engine=life.engine, pid=life.child.pid)

    async def _scores(self, life: _Life[EngineT]) -> bool:
        """Whether the engine scores a pair that is known to work."""
        assert life.engine is not None
        if self._probe is None:
            return True
        try:
            async with asyncio.timeout(self._start_timeout_s):
                await self._probe(life.engine)
        except TimeoutError:
            life.suspected.set()
            await asyncio.Event().wait()  # another watcher finds out
        except EngineUnavailable:
            await asyncio.Event().wait()  # it is dying
        except RerankdError as error:
            life.errors += 1
            life.fails_on_known = True
            _log.warning("the engine for %s fails on a known pair: %s", self._file_name, error.message)
            return False
        life.fails_on_known = False
        return True

    async def _until_grown(self, life: _Life[EngineT]) -> _Loss:
        most, by = self._watch.max_engine_memory, "max_engine_memory"
        started = time.monotonic()
        if most is None:
            held = await asyncio.to_thread(processes.memory_bytes, life.child.pid)
            if held is None:
                await asyncio.Event().wait()
            assert held is not None
            most = growth.bound(held, self._weights_bytes, self._outgrown)
            by = f"the {most / 2**20:.0f} MiB expected of one that held {held / 2**20:.0f} MiB at first"
        while True:
            held = await asyncio.to_thread(processes.memory_bytes, life.child.pid)
            if held is not None and held > most:
                text = f"The engine held {held / 2**20:.0f} MiB, more than {by}, and is replaced"
                _log.warning("%s between requests", text)
                self._outgrown += time.monotonic() - started < growth.LONG_LIFE_S
                return _Loss(EngineUnavailable(f"{text}; try again."), "requested")
            await asyncio.sleep(self._watch.health_poll_s)

    async def _until_asked(self) -> _Loss:
        await self._reload.wait()
        _log.info("a reload was asked for: the engine is replaced between requests")
        return _Loss(EngineUnavailable("The engine is being replaced; try again."), "requested")

    async def _become_ready(self, life: _Life[EngineT]) -> EngineT:
        try:
            async with asyncio.timeout(self._start_timeout_s):
                return await self._load(life)
        except TimeoutError:
            text = reasons.not_loaded(self._file_name, self._start_timeout_s, life.child.lines())
            raise EngineStartFailed(text, retry_after_s=None) from None

    async def _load(self, life: _Life[EngineT]) -> EngineT:
        poll_s = _FIRST_POLL_S
        while not await life.client.is_ready():
            if life.child.exit_code is not None:
                code = await life.child.wait()
                self._start_cause = self._cause(life, code)
                raise EngineStartFailed(self._died(life, code), retry_after_s=None)
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 1.5, _LONGEST_POLL_S)
        engine = life.client
        try:
            await engine.prepare()
            if self._check is not None:
                await self._check(engine)
        except EngineError as error:
            if isinstance(error, EngineUnavailable):
                with contextlib.suppress(TimeoutError):
                    code = await asyncio.wait_for(life.child.wait(), _FATE_S)
                    self._start_cause = self._cause(life, code)
                    raise EngineStartFailed(self._died(life, code)) from None
            elif type(error) is EngineError:
                _log.warning(
                    "the engine for %s gives an error for a known pair: %s", self._file_name, error.message
                )
                if reasons.says_memory(error.message):
                    self._start_cause = "memory"
                raise EngineStartFailed(reasons.fails_at_load(self._file_name)) from error
            raise
        self._check_memory(life.child)
        return engine

    def _died(self, life: _Life[EngineT], code: int) -> str:
        return reasons.died(self._file_name, code, life.child.lines(), life.advice)

    def _cause(self, life: _Life[EngineT], code: int) -> Cause:
        killed_for_memory = processes.memory_kills() > life.memory_kills
        return reasons.cause(code, life.child.lines(), out_of_memory=killed_for_memory)

    def _check_memory(self, child: Child) -> None:
        """Refuse a limit that no engine of this model can keep: it would be replaced for ever."""
        most, held = self._watch.max_engine_memory, processes.memory_bytes(child.pid)
        if most is not None and held is not None and held > most:
            raise EngineStartFailed(reasons.too_large(self._file_name, held, most), retry_after_s=None)


T = TypeVar("T")


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


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
