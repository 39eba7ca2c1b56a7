"""Work in the background, and ways to wait: for a change, for the first of several, for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Never, TypeVar

T = TypeVar("T")


class Changes:
    """Wakes all who wait at that moment, each time that something has changed."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Something has changed."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the next change, for so long at the most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._next.wait()


class Background(set[asyncio.Task[None]]):
    """Work that nobody waits for now. The event loop alone does not keep a task from being collected."""

    def begin(self, work: Coroutine[Any, Any, None], name: str | None = None) -> asyncio.Task[None]:
        """Have it done; returns at once."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.add(task)
        task.add_done_callback(self.discard)
        return task


async def first(*ways: Coroutine[Any, Any, T]) -> T:
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


async def forever() -> Never:
    """Wait until cancelled."""
    while True:
        await asyncio.Event().wait()
