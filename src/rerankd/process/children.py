"""The children of one engine, each from its start to its end: the one in use, its successor, those before."""

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
# A process that crashes may take seconds to end on a busy machine, the more so where it writes a core file.
_EXIT_NOTICE_S = 5.0
# Calls under way get so long to end before an engine is replaced all the same.
_LONGEST_LEASE_S = 60.0


@dataclass(frozen=True, slots=True)
class Watch:
    """When an engine is replaced: see the settings of these names."""

    health_poll_s: float = 2.0
    hang_margin_s: float = 30.0
    max_engine_memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Generic[EngineT]):
    """How the children of one engine are started, and what they are held to.

    `name` is the model's, `file_name` its file's, and the weights in it have `weights_bytes`. `launch` says
    how to start a child for a socket path. `check` is run on each engine that has become ready, before
    anyone else gets it; what it raises makes it a failed start. `probe` scores one pair that is known to
    work, for an engine that gave an error.
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
    """Why an engine has to go. `kill`: send SIGKILL, the process does not react to SIGTERM. `needs_more`: it
    reached its bound of memory soon, so it needs more."""

    error: RerankdError
    cause: Cause
    kill: bool = False
    needs_more: bool = False


@dataclass(eq=False)
class EngineChild(Generic[EngineT]):
    """A child, the engine behind its socket, and what its callers say of it: that one of them had no answer
    in time (`suspected`), or an error (`erred`, and `errors` in a row), or no connection (`unreachable`)."""

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
        """Start a child. Raises RerankdError."""
        socket = plan.run_dir.socket()
        kills = processes.memory_kills()
        launch = plan.launch(socket)
        process = await Child.start(
            launch.argv, plan.log, {**launch.environment, **os.environ}, launch.advice
        )
        note = plan.run_dir.note(process.pid)
        return cls(plan, process, launch.connect(socket), socket, note, launch.advice, kills)

    async def become_ready(self) -> Loss | None:
        """Wait until the engine can score; else why it can't."""
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
            file_name, said = self.plan.file_name, error.message
            _log.warning("the engine for %s gives an error for a known pair: %s", file_name, said)
            failed = EngineStartFailed(
                f"The engine loaded {file_name}, but gives an error instead of scores for a known pair. Its "
                f"own words are in rerankd's log. If memory is short: {failure_reasons.LESS_MEMORY}"
            )
            return Loss(failed, "memory" if failure_reasons.says_memory(said) else "start")
        most, held = self.plan.watch.max_engine_memory, processes.memory_bytes(self.process.pid)
        if most is not None and held is not None and held > most:  # it would be replaced for ever
            text = (
                f"The engine for {self.plan.file_name} holds {held / 2**20:.0f} MiB when it has just loaded, "
                f"more than max_engine_memory allows ({most / 2**20:.0f} MiB). Raise it, or: "
                f"{failure_reasons.LESS_MEMORY}"
            )
            return Loss(EngineStartFailed(text), "start")
        return None

    def describe(self, what: str) -> str:
        """What the engine did, with its last lines."""
        return f"The engine for {self.plan.file_name} {what}\n{failure_reasons.quote(self.process.lines())}"

    async def ended(self, error: type[EngineUnavailable] = EngineUnavailable) -> Loss:
        """Wait for the child's end; why it went."""
        code = await self.process.wait()
        lines = self.process.lines()
        killed_for_memory = processes.memory_kills() > self.memory_kills
        cause = failure_reasons.cause(code, lines, out_of_memory=killed_for_memory)
        return Loss(error(failure_reasons.died(self.plan.file_name, code, lines, self.advice)), cause)

    async def end(self, grace_s: float) -> None:
        """End the child, and remove what it left; safe to call again."""
        await self.process.stop(grace_s)
        await self.engine.close()
        self.socket.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


class EngineChildren(Generic[EngineT]):
    """Starts children and ends them: none is left when `close` returns. `fates` says why an engine went;
    `changes` are told when it is known."""

    def __init__(self, plan: Plan[EngineT], changes: Changes) -> None:
        self._plan = plan
        self._changes = changes
        self._grace_s = plan.stop_timeout_s
        self._running: set[EngineChild[EngineT]] = set()
        self._ends = Background()
        self._closing = asyncio.Event()
        self.exit_causes: weakref.WeakKeyDictionary[EngineT, Cause] = weakref.WeakKeyDictionary()

    async def exit_cause(self, engine: EngineT) -> Cause | None:
        """Why `engine` went; None where it still runs some seconds after it closed a connection."""
        notice = time.monotonic() + _EXIT_NOTICE_S
        while engine not in self.exit_causes and (left_s := notice - time.monotonic()) > 0:
            await self._changes.wait(left_s)
        return self.exit_causes.get(engine)

    async def begin(self) -> EngineChild[EngineT] | Loss:
        """Start a child, and wait until it can score; why it can't, once it has ended."""
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
        """End a child. It ends even if the caller is cancelled meanwhile."""
        await asyncio.shield(self._ends.begin(self._finish(child, kill=kill), "end an engine"))

    def retire(self, child: EngineChild[EngineT]) -> None:
        """End an engine that has a successor when its last call has ended; returns at once."""

        async def retire() -> None:
            await self.drain(child)
            await self._finish(child)

        self._ends.begin(retire(), "retire an engine")

    async def drain(self, child: EngineChild[EngineT]) -> None:
        """Wait until no call uses the engine, for so long as calls may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_LEASE_S):
                await first(child.leases.unused(), self._closing.wait())

    async def close(self) -> None:
        """End all."""
        self._closing.set()
        await asyncio.gather(*self._ends, *(self._finish(child) for child in self._running))

    def kill(self) -> None:
        """Have all end at once."""
        self._grace_s = 0.0
        for child in self._running:
            child.process.kill()

    async def _finish(self, child: EngineChild[EngineT], *, kill: bool = False) -> None:
        if child not in self._running:
            return
        if child.engine not in self.exit_causes:  # who asks it learns so at once
            self.exit_causes[child.engine] = "requested"
            self._changes.tell()
        await child.end(0.0 if kill else self._grace_s)
        self._running.discard(child)
