"""The supervisor of one engine: starts its child, waits until it is ready, and restarts or replaces it.

One task is the only writer of the state (see states.py). Callers await `ensure_ready`, or hold a `lease`
while they call the engine. Watchers (see watchers.py) detect an engine that has crashed, does not answer,
hangs, or returns only errors; it is restarted. An engine that exceeds its memory limit, has lost its socket,
or is reloaded is replaced without a failed request: its successor starts beside it if memory suffices for
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

# After a lost connection, `ensure_ready` waits this long for the engine to turn out dead.
_DEATH_NOTICE_S = 1.0


class Supervisor(Generic[EngineT]):
    """Owns one engine and its child processes.

    `safer` receives why an engine stopped and whether it had become ready, and returns whether the next start
    uses safer settings. If the engine had not become ready, that start follows without a delay.
    `lacks_memory` explains why memory does not suffice for a second engine beside a process, or returns "".
    `pause` waits before a restart, and `chance` is a random number for the delay (see restart_delay.py).
    """

    def __init__(
        self,
        plan: Plan[EngineT],
        *,
        safer: Callable[[Cause, bool], bool] = lambda cause, loaded: False,
        lacks_memory: Callable[[int], str] = machine.lacks_memory_beside,
        chance: Callable[[], float] = random.random,
        pause: Callable[[float], Coroutine[Any, Any, None]] = asyncio.sleep,
    ) -> None:
        self._plan = plan
        self._safer = safer
        self._lacks_memory = lacks_memory
        self._chance = chance
        self._pause = pause
        self.status: Status[EngineT] = Status()
        self._changes = Changes()
        self._children = EngineChildren(plan, self._changes)
        # The current child, or the last one.
        self._child: EngineChild[EngineT] | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self._reload = asyncio.Event()
        self._losses = 0
        self._outgrown = 0

    @property
    def leases(self) -> int:
        """The number of running calls."""
        return self._child.leases.count if self._child is not None else 0

    def start(self) -> None:
        """Start supervising; returns at once. Call it on the thread of the event loop, which must outlive the
        engine (see child.py)."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"supervise {self._plan.name}")

    def reload(self) -> None:
        """Start a failed or waiting engine now, or replace a running one between requests."""
        self._reload.set()

    def suspect(self) -> None:
        """Report that a call timed out. The engine is replaced if it hangs."""
        if self.status.engine is not None and self._child is not None:
            self._child.suspected.set()

    def answered(self, engine: EngineT) -> None:
        """Report that `engine` has answered a request, which resets the restart delay."""
        if self._child is not None and self._child.engine is engine:
            self._losses = self._child.errors = 0

    async def erred(self, engine: EngineT, message: str) -> Cause | None:
        """Report that `engine` returned an error instead of scores. No request uses it until it has scored a
        known pair; after three errors in a row it is replaced. Returns why it was replaced, or None."""
        _log.warning("the engine for %s returned an error: %s", self._plan.file_name, message)
        if self._child is not None and self._child.engine is engine:
            self._child.errors += 1
            self._child.erred.set()
            while self._child.engine is engine and self._is_doubted():
                await self._changes.wait()
        return self.known_exit_cause(engine)

    async def exit_cause(self, engine: EngineT) -> Cause | None:
        """Return why `engine` exited, or None if it still runs some seconds after it closed a connection."""
        return await self._children.exit_cause(engine)

    def known_exit_cause(self, engine: EngineT) -> Cause | None:
        """Return why `engine` exited, or None if that is not known yet."""
        return self._children.exit_causes.get(engine)

    async def ensure_ready(self, *, after: EngineT | None = None) -> EngineT:
        """Wait for a ready engine, and return it. `after` is the engine whose connection the caller lost; it
        is returned again if it turns out to be alive.

        Raises the error that made the engine fail, with the time of the next start, or EngineUnavailable once
        the supervisor is stopped.
        """
        notice = time.monotonic() + _DEATH_NOTICE_S
        while True:
            engine, state, timeout_s = self._usable(), self.status.state, None
            if engine is not None and self._child is not None:
                if not self._child.socket.exists():
                    self._child.unreachable.set()  # the watcher replaces it
                elif engine is not after or time.monotonic() >= notice:
                    return engine
                else:
                    timeout_s = notice - time.monotonic()
            if isinstance(state, Failed) and not self._reload.is_set():
                error = copy.copy(state.error)  # one copy per caller: a raised error collects tracebacks
                error.retry_after_s = max(math.ceil(state.until - time.monotonic()), 1)
                raise error
            if self._task is None or self._is_stopping:
                raise EngineUnavailable("The engine is stopped.")
            await self._changes.wait(timeout_s)

    @contextlib.asynccontextmanager
    async def lease(self, *, after: EngineT | None = None, alone: bool = False) -> AsyncIterator[EngineT]:
        """Lease a ready engine (see ensure_ready). A planned replacement waits until the lease is released.
        With `alone`, no other call uses the engine meanwhile."""
        while True:
            engine = await self.ensure_ready(after=after)
            assert self._child is not None
            leases = self._child.leases
            await leases.enter(alone=alone)
            if self._usable() is engine:
                break
            leases.leave()  # it was replaced while this call waited
        try:
            yield engine
        finally:
            leases.leave()

    def _usable(self) -> EngineT | None:
        """The engine for new calls, or None."""
        state = self.status.state
        return state.engine if isinstance(state, Ready) and not self._is_doubted() else None

    def _is_doubted(self) -> bool:
        """Whether the engine returned an error and has not scored a known pair since."""
        state = self.status.state
        if isinstance(state, Ready) and self._child is not None:
            return self._child.erred.is_set()  # the watcher has not reacted yet
        return isinstance(state, Checking)

    async def stop(self, *, at_once: bool = False) -> None:
        """Stop the engine and its children. Safe to call again, also with `at_once` to kill them during an
        earlier, graceful stop."""
        if at_once:
            self._children.kill()
        if self._task is not None:
            if not self._is_stopping:  # a second cancellation would interrupt the cleanup
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
                    text = f"rerankd failed to supervise its engine: {error!r}. See rerankd's log."
                    self._set(Stopping())
                    if self._child is not None:
                        await self._children.end(self._child)
                    await self._wait_after(Loss(EngineUnavailable(text), "start"))
        finally:
            self._set(Stopping())
            await self._children.close()
            self._set(Stopped())

    async def _wait_after(self, loss: Loss) -> None:
        """Wait for the restart delay, or for a reload, which ends it."""
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
        if self._reload.is_set():  # the user may have fixed the cause
            self._losses = 0
            self._reload.clear()

    async def _live(self) -> None:
        """Start an engine, supervise it until it exits, and wait for the restart delay if it failed."""
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
        """Watch an engine, and its successors while each takes over from the one before. Returns why the last
        one was stopped, once it has exited."""
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
        """Start a successor beside the current engine, and return it once it is ready. Returns the loss if
        the current engine must stop first, or has crashed meanwhile."""
        lack = await asyncio.to_thread(self._lacks_memory, child.process.pid)
        if lack:
            _log.info(
                "%s: the engine for %s is stopped before the next one starts", lack, self._plan.file_name
            )
            return loss

        async def begin() -> EngineChild[EngineT] | Loss:
            while True:
                self._count(starts=1)
                found = await self._children.begin()
                if isinstance(found, EngineChild):
                    return found
                _log.warning(
                    "could not start the next engine beside the current one: %s", found.error.message
                )
                if not self._safer(found.cause, False):
                    return loss

        async def doubt() -> Never:
            if isinstance(self.status.state, Ready):
                await child.erred.wait()
                self._set(Checking(child.process.pid))  # requests wait for the successor
            await forever()

        return await first(begin(), watchers.exited(child), doubt())
