"""Every child of one engine: the one in use, its successor and its predecessors, and why those went."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from typing import Generic

from rerankd.errors import RerankdError
from rerankd.process.child import EngineT
from rerankd.process.life import FATE_S, Life, Loss, Plan
from rerankd.process.reasons import Cause
from rerankd.process.tasks import Background, Changes, first

# Calls under way get so long to end before an engine is replaced all the same.
_LONGEST_LEASE_S = 60.0


class Lives(Generic[EngineT]):
    """Starts children and ends them: none is left when `close` returns. `fates` says why an engine went;
    `changes` are told when it is known."""

    def __init__(self, plan: Plan[EngineT], changes: Changes) -> None:
        self._plan = plan
        self._changes = changes
        self._grace_s = plan.stop_timeout_s
        self._running: set[Life[EngineT]] = set()
        self._ends = Background()
        self._closing = asyncio.Event()
        self.fates: weakref.WeakKeyDictionary[EngineT, Cause] = weakref.WeakKeyDictionary()

    async def fate(self, engine: EngineT) -> Cause | None:
        """Why `engine` went; None where it still runs some seconds after it closed a connection."""
        notice = time.monotonic() + FATE_S
        while engine not in self.fates and (left_s := notice - time.monotonic()) > 0:
            await self._changes.wait(left_s)
        return self.fates.get(engine)

    async def begin(self) -> Life[EngineT] | Loss:
        """Start a child, and wait until it can score; why it can't, once it has ended."""
        try:
            life = await Life.start(self._plan)
        except RerankdError as error:
            return Loss(error, "start")
        self._running.add(life)
        try:
            loss = await life.become_ready()
        except BaseException:
            await self.end(life)
            raise
        if loss is not None:
            await self.end(life)
        return loss or life

    async def end(self, life: Life[EngineT], *, kill: bool = False) -> None:
        """End a child. It ends even if the caller is cancelled meanwhile."""
        await asyncio.shield(self._ends.begin(self._finish(life, kill=kill), "end an engine"))

    def retire(self, life: Life[EngineT]) -> None:
        """End an engine that has a successor when its last call has ended; returns at once."""

        async def retire() -> None:
            await self.drain(life)
            await self._finish(life)

        self._ends.begin(retire(), "retire an engine")

    async def drain(self, life: Life[EngineT]) -> None:
        """Wait until no call uses the engine, for so long as calls may take."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LONGEST_LEASE_S):
                await first(life.leases.unused(), self._closing.wait())

    async def close(self) -> None:
        """End all."""
        self._closing.set()
        await asyncio.gather(*self._ends, *(self._finish(life) for life in self._running))

    def kill(self) -> None:
        """Have all end at once."""
        self._grace_s = 0.0
        for life in self._running:
            life.child.kill()

    async def _finish(self, life: Life[EngineT], *, kill: bool = False) -> None:
        if life not in self._running:
            return
        if life.engine not in self.fates:  # who asks it learns so at once
            self.fates[life.engine] = "requested"
            self._changes.tell()
        await life.end(0.0 if kill else self._grace_s)
        self._running.discard(life)
