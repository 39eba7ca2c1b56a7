"""Start and stop the child processes of one engine: the current child, its successor, and retired ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
import weakref
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic

from rerankd import processes
from rerankd.errors import EngineError, EngineStartFailed, EngineUnavailable, RerankdError
from rerankd.process import failure_reasons
from rerankd.process.child import Child, EngineT, Launch
from rerankd.process.failure_reasons import Cause
from rerankd.process.leases import Leases
from rerankd.process.rundir import RunDir
from rerankd.process.tasks import Background, Changes, first

_log = logging.getLogger("rerankd.engine")

_FIRST_POLL_S = 0.02
_LONGEST_POLL_S = 0.25
# On a busy machine a crashing process may take seconds to exit, longer still if it writes a core file.
_EXIT_NOTICE_S = 5.0
# An engine is replaced after this time even if calls are still running.
_LONGEST_LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class Watch:
    """Settings for the health checks of an engine; see the settings of the same names."""

    health_poll_s: float = 2.0
    hang_margin_s: float = 30.0
    max_engine_memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Generic[EngineT]):
    """How to start and check the children of one engine.

    `name` is the model's name, `file_name` that of its file, and `weights_bytes` the size of its weights.
    `launch` returns how to start a child for a socket path. `check` runs on each engine that becomes ready,
    before any request uses it; if it raises, the start has failed. `probe` scores a known pair, after an
    engine returned an error.
    """

    name: str
    file_name: str
    launch: Callable[[Path], Launch[EngineT]]
    check: Callable[[EngineT], Awaitable[None]]
    probe: Callable[[EngineT], Awaitable[None]]
    run_dir: RunDir
    log: Path
    start_timeout_s: float
    stop_timeout_s: float
    weights_bytes: int = 0
    watch: Watch = Watch()


@dataclass(frozen=True, slots=True)
class Loss:
    """Why an engine must be replaced. `kill`: send SIGKILL, because the process does not react to SIGTERM.
    `needs_more`: the engine reached its memory limit soon after its start, so the next one gets a higher
    limit."""

    error: RerankdError
    cause: Cause
    kill: bool = False
    needs_more: bool = False


@dataclass(eq=False)
class EngineChild(Generic[EngineT]):
    """A child process, the client of its engine, and what callers reported about it.

    A caller sets `suspected` after a timeout, `erred` after an error (`errors` counts them in a row), and
    `unreachable` if it could not connect."""

    plan: Plan[EngineT]
    process: Child
    engine: EngineT
    socket: Path
    note: Path
    advice: failure_reasons.Advice
    memory_kills: int
    leases: Leases = field(default_factory=Leases)
    suspected: asyncio.Event = field(default_factory=asyncio.Event)
    erred: asyncio.Event = field(default_factory=asyncio.Event)
    unreachable: asyncio.Event = field(default_factory=asyncio.Event)
    errors: int = 0

    @classmethod
    async def start(cls, plan: Plan[EngineT]) -> EngineChild[EngineT]:
        """Start a child process. Raises RerankdError."""
        socket = plan.run_dir.socket()
        kills = processes.memory_kills()
        launch = plan.launch(socket)
        process = await Child.start(
            launch.argv, plan.log, {**launch.environment, **os.environ}, launch.advice
        )
        note = plan.run_dir.note(process.pid)
        return cls(plan, process, launch.connect(socket), socket, note, launch.advice, kills)

    async def become_ready(self) -> Loss | None:
        """Wait until the engine can score. Returns why it can't, or None."""
        try:
            async with asyncio.timeout(self.plan.start_timeout_s):
                return await self._load()
        except TimeoutError:
            text = (
                f"The engine did not load {self.plan.file_name} within {self.plan.start_timeout_s:g} s. "
                f"Raise start_timeout_s if the disk is slow.\n{failure_reasons.quote(self.process.lines())}"
            )
            return Loss(EngineStartFailed(text), "start")
        except RerankdError as error:
            return Loss(error, "start")

    async def _load(self) -> Loss | None:
        poll_s = _FIRST_POLL_S
        while not await self.engine.is_ready():
            if self.process.exit_code is not None:
                return await self.ended(EngineStartFailed)
            await asyncio.sleep(poll_s)
            poll_s = min(poll_s * 1.5, _LONGEST_POLL_S)
        try:
            await self.engine.prepare()
            await self.plan.check(self.engine)
        except EngineUnavailable:
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(self.ended(EngineStartFailed), _EXIT_NOTICE_S)
            raise
        except EngineError as error:
            if type(error) is not EngineError:
                raise
            file_name, message = self.plan.file_name, error.message
            _log.warning("the engine for %s returned an error for a known pair: %s", file_name, message)
            failed = EngineStartFailed(
                f"The engine loaded {file_name}, but returned an error for a known pair. The error is in "
                f"rerankd's log. If memory is short, {failure_reasons.LESS_MEMORY}"
            )
            return Loss(failed, "memory" if failure_reasons.says_memory(message) else "start")
        most, held = self.plan.watch.max_engine_memory, processes.memory_bytes(self.process.pid)
        if most is not None and held is not None and held > most:  # it would be replaced again and again
            text = (
                f"The engine for {self.plan.file_name} uses {held / 2**20:.0f} MiB right after loading, more "
                f"than max_engine_memory allows ({most / 2**20:.0f} MiB). Raise max_engine_memory, or "
                f"{failure_reasons.LESS_MEMORY}"
            )
            return Loss(EngineStartFailed(text), "start")
        return None

    def describe(self, what: str) -> str:
        """Return a sentence about the engine, with its last lines of output."""
        return f"The engine for {self.plan.file_name} {what}\n{failure_reasons.quote(self.process.lines())}"

    async def ended(self, error: type[EngineUnavailable] = EngineUnavailable) -> Loss:
        """Wait until the child has exited. Returns why it exited."""
        code = await self.process.wait()
        lines = self.process.lines()
        killed_for_memory = processes.memory_kills() > self.memory_kills
        cause = failure_reasons.cause(code, lines, out_of_memory=killed_for_memory)
        return Loss(error(failure_reasons.died(self.plan.file_name, code, lines, self.advice)), cause)

    async def end(self, grace_s: float) -> None:
        """Stop the child, and remove its socket and note. Safe to call again."""
        await self.process.stop(grace_s)
        await self.engine.close()
        self.socket.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


class EngineChildren(Generic[EngineT]):
    """Starts and stops children; none runs after `close` has returned. `exit_causes` holds why each engine
    exited, and `changes` is notified when an entry is added."""

    def __init__(self, plan: Plan[EngineT], changes: Changes) -> None:
        self._plan = plan
        self._changes = changes
        self._grace_s = plan.stop_timeout_s
        self._running: set[EngineChild[EngineT]] = set()
        self._ends = Background()
        self._closing = asyncio.Event()
        self.exit_causes: weakref.WeakKeyDictionary[EngineT, Cause] = weakref.WeakKeyDictionary()

    async def exit_cause(self, engine: EngineT) -> Cause | None:
        """Return why `engine` exited, or None if it still runs some seconds after it closed a connection."""
        notice = time.monotonic() + _EXIT_NOTICE_S
        while engine not in self.exit_causes and (left_s := notice - time.monotonic()) > 0:
            await self._changes.wait(left_s)
        return self.exit_causes.get(engine)

    async def begin(self) -> EngineChild[EngineT] | Loss:
        """Start a child, and wait until it can score. If it can't, stop it and return why."""
        try:
            child = await EngineChild.start(self._plan)
        except RerankdError as error:
            return Loss(error, "start")
        self._running.add(child)
        try:
            loss = await child.become_ready()
        except BaseException:
            await self.end(child)
            raise
        if loss is not None:
            await self.end(child)
        return loss or child

    async def end(self, child: EngineChild[EngineT], *, kill: bool = False) -> None:
        """Stop a child, even if the caller is cancelled meanwhile."""
        await asyncio.shield(self._ends.begin(self._finish(child, kill=kill), "end an engine"))

    def retire(self, child: EngineChild[EngineT]) -> None:
        """Stop a replaced engine after its last call has ended. Returns at once."""

        async def retire() -> None:
            await self.drain(child)
            await self._finish(child)

        self._ends.begin(retire(), "retire an engine")

    async def drain(self, child: EngineChild[EngineT]) -> None:
        """Wait until no call uses the engine, at most `_LONGEST_LEASE_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_LEASE_S):
                await first(child.leases.unused(), self._closing.wait())

    async def close(self) -> None:
        """Stop all children."""
        self._closing.set()
        await asyncio.gather(*self._ends, *(self._finish(child) for child in self._running))

    def kill(self) -> None:
        """Send SIGKILL to all children."""
        self._grace_s = 0.0
        for child in self._running:
            child.process.kill()

    async def _finish(self, child: EngineChild[EngineT], *, kill: bool = False) -> None:
        if child not in self._running:
            return
        if child.engine not in self.exit_causes:  # its callers learn the cause at once
            self.exit_causes[child.engine] = "requested"
            self._changes.tell()
        await child.end(0.0 if kill else self._grace_s)
        self._running.discard(child)
