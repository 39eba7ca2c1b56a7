"""One call to one of a model's engines, and what became of the engine if it failed."""

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
# A call that was given up sooner says nothing of an engine that turns out to be stuck.
_SLOW_S = 1.0
_MOST_ABANDONED = 100
_REMEMBERED_S = 300.0
# What a connection to an engine raises that had died before.
_NOT_REACHED = (ConnectionRefusedError, ConnectionAbortedError, FileNotFoundError)

Part = Callable[[Engine, Sequence[U]], Awaitable[Sequence[T]]]
"""A call for some of what is asked: one answer for each."""
IsWanted = Callable[[int], bool]
"""Whether anybody still waits for what stands at this place."""


def always(at: int) -> bool:
    return True


@dataclass(slots=True)
class Work(Generic[U]):
    """What is asked, by place: the items, and what they are remembered by. `questions` are what the
    questions are remembered by that they are scored for; empty where they are only tokenized."""

    items: Sequence[U]
    keys: Sequence[str]
    query_keys: Sequence[str] = ()
    is_wanted: IsWanted = always

    def keys_of(self, part: Sequence[int]) -> list[str]:
        return [self.keys[at] for at in part]


@dataclass(frozen=True, slots=True)
class AbandonedCall:
    """A call that nobody waits for any more; its engine may turn out to be stuck in it."""

    engine: Engine
    names: tuple[str, ...]
    alone: bool
    at: float


class EngineLost(Exception):
    """An engine that went under a call, or gave an error. `cause` None: it runs, but hung up."""

    def __init__(self, engine: Engine, cause: Cause | None, error: EngineError) -> None:
        super().__init__()
        self.engine, self.cause, self.error = engine, cause, error


class EngineCaller:
    """Calls to the engines of one model. `running` gives them, or raises EngineUnavailable. `patience_s` is
    how long a call that has the engine alone may take before it is looked at whether the engine is stuck."""

    def __init__(self, name: str, running: Callable[[], Replicas], log: Path, patience_s: float) -> None:
        self._name = name
        self._running = running
        self._log = log
        self._patience_s = patience_s
        self._abandoned: list[AbandonedCall] = []

    async def call_once(
        self, work: Work[U], part: list[int], call: Part[U, T], *, after: Engine | None, alone: bool
    ) -> Sequence[T]:
        """What `call` gets from an engine for the places in `part`. Once an engine is there, those are taken
        out of `part` that nobody wants any more. `after` is an engine that has failed the caller, `alone`: no
        other call has the engine meanwhile.

        Raises EngineLost, InputTooLong, and what keeps an engine from being ready.
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
                # The lease is kept until the engine is known to be dead: who gets it next would be suspected.
                cause = await supervisor.exit_cause(engine)
                if isinstance(error.__cause__, _NOT_REACHED) and cause is not None:
                    cause = "killed"
                raise EngineLost(engine, cause, error) from None
            except EngineError as error:
                failure = error
        cause = await supervisor.erred(engine, failure.message) or "errors"
        if cause == "errors" and failure_reasons.says_memory(failure.message):
            cause = "memory"
        told = EngineError(
            f"The engine for {self._name} gave an error instead of scores. Its own words are in "
            f"rerankd's log and in {self._log}. Try again; if it stays so, try another engine "
            "or a smaller model."
        )
        raise EngineLost(engine, cause, told)

    def lost_since(self) -> Iterator[tuple[AbandonedCall, Cause]]:
        """The calls that were given up and whose engine went since, each once."""
        now = time.monotonic()
        for one in tuple(self._abandoned):
            cause = self._running().exit_cause(one.engine)
            if cause is None and now - one.at < _REMEMBERED_S:
                continue
            self._abandoned.remove(one)
            if cause is not None:
                yield one, cause

    async def _checking_slow(self, call: Awaitable[T]) -> T:
        """Wait for a call that has the engine alone. One that takes long has the engine looked at sooner than
        the deadline would: it is known what to expect."""
        task = asyncio.ensure_future(call)
        try:
            await asyncio.wait([task], timeout=self._patience_s)
            if not task.done():
                self._running().suspect()
            return await task
        finally:
            task.cancel()
