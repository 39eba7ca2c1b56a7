"""Keeps one engine running: starts its child, waits until it is ready, and replaces it when it must.

One task is the only writer of the state (see states.py); everybody else awaits `ensure_ready`, or holds a
`lease` while it asks the engine something. A watcher for each reason finds that an engine has to go: it died,
is silent, stuck or useless (see watchers.py). One that has outgrown its memory, has lost its socket or is to
be reloaded is replaced without a failed request: the next one is started beside it where there is room for
two, else after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import math
import random
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import Any, Generic, Never

from rerankd import machine
from rerankd.errors import EngineUnavailable
from rerankd.process import restart_delay, watchers
from rerankd.process.child import EngineT
from rerankd.process.children import EngineChild, EngineChildren, Loss, Plan
from rerankd.process.failure_reasons import Cause
from rerankd.process.states import Checking, Failed, Ready, Starting, State, Status, Stopped, Stopping
from rerankd.process.tasks import Changes, first, forever

_log = logging.getLogger("rerankd.engine")

# A caller whose engine closed the connection learns within this time whether the engine has died.
_DEATH_NOTICE_S = 1.0


class Supervisor(Generic[EngineT]):
    """Owner of one engine and its child.

    `safer` is told why an engine went and whether it had become ready, and returns whether the next start
    differs: then a failed start is no failure yet. `lacks_room` says in words why there is no room for a
    second engine beside a process, "" where there is. `pause` waits before a restart, and `chance` is a
    random number for its length (see restart_delay.py).
    """

    def __init__(
        self,
        plan: Plan[EngineT],
        *,
        safer: Callable[[Cause, bool], bool] = lambda cause, loaded: False,
        lacks_room: Callable[[int], str] = machine.lacks_room_beside,
        chance: Callable[[], float] = random.random,
        pause: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self._plan = plan
        self._safer = safer
        self._lacks_room = lacks_room
        self._chance = chance
        self._pause = pause
        self.status: Status[EngineT] = Status()
        self._changes = Changes()
        self._children = EngineChildren(plan, self._changes)
        # The child in use, or the last one that was.
        self._child: EngineChild[EngineT] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._reload = asyncio.Event()
        self._losses = 0
        self._outgrown = 0

    @property
    def leases(self) -> int:
        """Calls that are under way."""
        return self._child.leases.count if self._child is not None else 0

    def start(self) -> None:
        """Begin; returns at once. Must be called on the thread of the event loop that stays (see
        child.py)."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"supervise {self._plan.name}")

    def reload(self) -> None:
        """Try again now: start a failed or waiting engine, replace a running one between requests."""
        self._reload.set()

    def suspect(self) -> None:
        """Say that a call was not answered in time; the engine is replaced if it is stuck."""
        if self.status.engine is not None and self._child is not None:
            self._child.suspected.set()

    def answered(self, engine: EngineT) -> None:
        """Say that `engine` has scored what a client asked for: it works."""
        if self._child is not None and self._child.engine is engine:
            self._losses = self._child.errors = 0

    async def erred(self, engine: EngineT, message: str) -> Cause | None:
        """Say that `engine` gave an error instead of scores. Nobody gets it until it has scored a known
        pair; after three errors in a row it is replaced. Returns why; None where it goes on."""
        _log.warning("the engine for %s gave an error instead of scores: %s", self._plan.file_name, message)
        if self._child is not None and self._child.engine is engine:
            self._child.errors += 1
            self._child.erred.set()
            while self._child.engine is engine and self._is_doubted():
                await self._changes.wait()
        return self.known_exit_cause(engine)

    async def exit_cause(self, engine: EngineT) -> Cause | None:
        """Why `engine` went; None where it still runs some seconds after it closed a connection."""
        return await self._children.exit_cause(engine)

    def known_exit_cause(self, engine: EngineT) -> Cause | None:
        """Why `engine` went, as far as that is known now."""
        return self._children.exit_causes.get(engine)

    async def ensure_ready(self, *, after: EngineT | None = None) -> EngineT:
        """Wait for a ready engine, and return it. `after` is one that has failed its caller: if it does not
        turn out to be dead, it is returned again.

        Raises what made the engine fail, with the time of the next start, or EngineUnavailable once it is
        stopped.
        """
        notice = time.monotonic() + _DEATH_NOTICE_S
        while True:
            engine, state, timeout_s = self._usable(), self.status.state, None
            if engine is not None and self._child is not None:
                if not self._child.socket.exists():
                    self._child.unreachable.set()  # it is replaced
                elif engine is not after or time.monotonic() >= notice:
                    return engine
                else:
                    timeout_s = notice - time.monotonic()
            if isinstance(state, Failed) and not self._reload.is_set():
                error = copy.copy(state.error)  # one for each: a raised error collects tracebacks
                error.retry_after_s = max(math.ceil(state.until - time.monotonic()), 1)
                raise error
            if self._task is None or self._is_stopping:
                raise EngineUnavailable("The engine is stopped.")
            await self._changes.wait(timeout_s)

    @contextlib.asynccontextmanager
    async def lease(self, *, after: EngineT | None = None, alone: bool = False) -> AsyncIterator[EngineT]:
        """A ready engine (see ensure_ready), which is not replaced without need until it is given back;
        `alone`: no other call has it meanwhile."""
        while True:
            engine = await self.ensure_ready(after=after)
            assert self._child is not None
            leases = self._child.leases
            await leases.enter(alone=alone)
            if self._usable() is engine:
                break
            leases.leave()  # it went while this call waited
        try:
            yield engine
        finally:
            leases.leave()

    def _usable(self) -> EngineT | None:
        """The engine that calls get now."""
        state = self.status.state
        return state.engine if isinstance(state, Ready) and not self._is_doubted() else None

    def _is_doubted(self) -> bool:
        """Whether the engine gave an error, and has not scored a known pair since."""
        state = self.status.state
        if isinstance(state, Ready) and self._child is not None:
            return self._child.erred.is_set()  # the task has not come to it yet
        return isinstance(state, Checking)

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop the engine and its child; safe to call again, and with `at_once` to cut an earlier call
        short."""
        if at_once:
            self._children.kill()
        if self._task is not None:
            if not self._is_stopping:  # another cancellation would cut the end short
                self._task.cancel()
            self._is_stopping = True
            await asyncio.wait([self._task])

    def _set(self, state: State[EngineT]) -> None:
        self.status = self.status.after(state)
        self._changes.tell()

    def _count(self, *, starts: int = 0, lost: int = 0) -> None:
        status = self.status
        self.status = replace(status, starts=status.starts + starts, lost=status.lost + lost)

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._live()
                except Exception as error:  # the crash boundary of this task
                    _log.exception("the supervisor of %s failed for an unexpected reason", self._plan.name)
                    text = f"rerankd failed to watch its engine: {error!r}. See its log."
                    self._set(Stopping())
                    if self._child is not None:
                        await self._children.end(self._child)
                    await self._wait_after(Loss(EngineUnavailable(text), "start"))
        finally:
            self._set(Stopping())
            await self._children.close()
            self._set(Stopped())

    async def _wait_after(self, loss: Loss) -> None:
        """The delay before the next start; a reload ends it."""
        self._count(lost=1)
        self._losses += 1
        delay_s, loaded = restart_delay.delay_s(self._losses, self._chance()), self._child is not None
        until = time.monotonic() + delay_s
        state, level, text = restart_delay.state(
            self._plan.name, loss.error, self._losses, delay_s, until, loaded
        )
        _log.log(level, "%s", text)
        self._set(state)
        await first(self._pause(delay_s), self._reload.wait())
        if self._reload.is_set():  # somebody has mended something
            self._losses = 0
            self._reload.clear()

    async def _live(self) -> None:
        """Start an engine, and watch it to its end and beyond."""
        self._set(Starting())
        self._count(starts=1)
        child = await self._children.begin()
        loaded = isinstance(child, EngineChild)
        loss = await self._supervise(child) if isinstance(child, EngineChild) else child
        if loss.cause == "requested":
            return
        if self._safer(loss.cause, loaded) and not loaded:
            _log.warning("%s", loss.error.message)
            self._count(lost=1)
        else:
            await self._wait_after(loss)

    async def _supervise(self, child: EngineChild[EngineT]) -> Loss:
        """Watch an engine, and its successors as long as they take over from each other. Returns why the last
        one went, once it has ended."""
        while True:
            self._child = child
            self._reload.clear()
            self._set(Ready(child.engine, child.process.pid))
            loss = await watchers.loss(child, self._set, self._outgrown, self._reload)
            self._outgrown += loss.needs_more
            found = await self._start_successor(child, loss) if loss.cause == "requested" else loss
            if isinstance(found, Loss):
                break
            self._children.retire(child)
            child = found
        self._children.exit_causes[child.engine] = found.cause
        self._set(Stopping())
        if found.cause == "requested":
            await self._children.drain(child)
        await self._children.end(child, kill=found.kill)
        return found

    async def _start_successor(self, child: EngineChild[EngineT], loss: Loss) -> EngineChild[EngineT] | Loss:
        """A successor that is ready, started beside the engine that has to go; a loss where that one has to
        go first, or has gone."""
        lack = await asyncio.to_thread(self._lacks_room, child.process.pid)
        if lack:
            _log.info("%s: the engine for %s ends before the next one starts", lack, self._plan.file_name)
            return loss

        async def begin() -> EngineChild[EngineT] | Loss:
            while True:
                self._count(starts=1)
                found = await self._children.begin()
                if isinstance(found, EngineChild):
                    return found
                _log.warning("no engine could be started beside the old one: %s", found.error.message)
                if not self._safer(found.cause, False):
                    return loss

        async def doubt() -> Never:
            if isinstance(self.status.state, Ready):
                await child.erred.wait()
                self._set(Checking(child.process.pid))  # the successor is waited for
            await forever()

        return await first(begin(), watchers.dead(child), doubt())
