"""Make one call to an engine, and find out why the engine was lost if it fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rerankd.backends.base import Engine
from rerankd.errors import EngineError, EngineUnavailable, InputTooLong
from rerankd.process import failure_reasons
from rerankd.process.failure_reasons import Cause
from rerankd.serving.replicas import Replicas

T = TypeVar("T")
U = TypeVar("U")
# A call that was abandoned sooner is no evidence that it blocked the engine.
_SLOW_S = 1.0
_MOST_ABANDONED = 100
_REMEMBERED_S = 300.0
# Raised by a connection to an engine that was dead before the call.
_NOT_REACHED = (ConnectionRefusedError, ConnectionAbortedError, FileNotFoundError)

Part = Callable[[Engine, Sequence[U]], Awaitable[Sequence[T]]]
"""A call for some of the items. Returns one answer for each."""
IsWanted = Callable[[int], bool]
"""Whether a client still waits for the item at this index."""


def always(at: int) -> bool:
    return True


@dataclass(slots=True)
class Work(Generic[U]):
    """The items of a call, and their quarantine keys. `query_keys` are the quarantine keys of their queries;
    empty if the items are only tokenized."""

    items: Sequence[U]
    keys: Sequence[str]
    query_keys: Sequence[str] = ()
    is_wanted: IsWanted = always

    def keys_of(self, part: Sequence[int]) -> list[str]:
        return [self.keys[at] for at in part]


@dataclass(frozen=True, slots=True)
class AbandonedCall:
    """A call whose clients have all disconnected. Its engine may still be blocked by it."""

    engine: Engine
    names: tuple[str, ...]
    alone: bool
    at: float


class EngineLost(Exception):
    """An engine was lost during a call, or returned an error. `cause` is None if it still runs but closed the
    connection."""

    def __init__(self, engine: Engine, cause: Cause | None, error: EngineError) -> None:
        super().__init__()
        self.engine, self.cause, self.error = engine, cause, error


class EngineCaller:
    """Makes calls to the engines of one model. `running` returns them, or raises EngineUnavailable.
    `patience_s` is how long an exclusive call may take before the engine is checked."""

    def __init__(self, name: str, running: Callable[[], Replicas], log: Path, patience_s: float) -> None:
        self._name = name
        self._running = running
        self._log = log
        self._patience_s = patience_s
        self._abandoned: list[AbandonedCall] = []

    async def call_once(
        self, work: Work[U], part: list[int], call: Part[U, T], *, after: Engine | None, alone: bool
    ) -> Sequence[T]:
        """Call an engine once for the items at the indexes in `part`. As soon as an engine is leased, items
        that no client waits for are removed from `part`. `after` is the engine that failed last time. With
        `alone`, the call is exclusive: no other call uses the engine meanwhile.

        Raises EngineLost, InputTooLong, and the error that keeps an engine from becoming ready.
        """
        supervisor = self._running().pick(after)
        async with supervisor.lease(after=after, alone=alone) as engine:
            part[:] = [at for at in part if work.is_wanted(at)]
            if not part:
                return []
            begun = time.monotonic()
            try:
                pending = call(engine, [work.items[at] for at in part])
                return await (self._checking_slow(pending) if alone else pending)
            except asyncio.CancelledError:
                if (now := time.monotonic()) - begun > _SLOW_S:
                    self._abandoned.append(AbandonedCall(engine, tuple(work.keys_of(part)), alone, now))
                    del self._abandoned[:-_MOST_ABANDONED]
                raise
            except InputTooLong:
                raise
            except EngineUnavailable as error:
                # Keep the lease until the engine is known to be dead. Otherwise the next call would be
                # blamed.
                cause = await supervisor.exit_cause(engine)
                if isinstance(error.__cause__, _NOT_REACHED) and cause is not None:
                    cause = "killed"
                raise EngineLost(engine, cause, error) from None
            except EngineError as error:
                failure = error
        cause = await supervisor.erred(engine, failure.message) or "errors"
        if cause == "errors" and failure_reasons.says_memory(failure.message):
            cause = "memory"
        reported = EngineError(
            f"The engine for {self._name} returned an error instead of scores. Its message is in "
            f"rerankd's log and in {self._log}. Try again. If the error persists, use another engine "
            "or a smaller model."
        )
        raise EngineLost(engine, cause, reported)

    def lost_since(self) -> Iterator[tuple[AbandonedCall, Cause]]:
        """The abandoned calls whose engine was lost afterwards, each once."""
        now = time.monotonic()
        for one in tuple(self._abandoned):
            cause = self._running().exit_cause(one.engine)
            if cause is None and now - one.at < _REMEMBERED_S:
                continue
            self._abandoned.remove(one)
            if cause is not None:
                yield one, cause

    async def _checking_slow(self, call: Awaitable[T]) -> T:
        """Wait for an exclusive call. If it is slow, have the engine checked now, without waiting for the
        deadline."""
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait([task], timeout=self._patience_s)
            if not task.done():
                self._running().suspect()
            return await task
        finally:
            task.cancel()
