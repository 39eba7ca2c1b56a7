"""asyncio helpers: background tasks, and waiting for a change, for the first of several, or forever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Never, TypeVar

T = TypeVar("T")


class Changes:
    """A broadcast: `tell` wakes all tasks that are waiting at that moment."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def tell(self) -> None:
        """Wake all waiting tasks."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self, timeout_s: float | None = None) -> None:
        """Wait for the next change, at most `timeout_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._next.wait()


class Background(set[asyncio.Task[None]]):
    """A set of background tasks. It keeps a reference to each, because the event loop itself holds only weak
    references to tasks."""

    def begin(self, work: Coroutine[Any, Any, None], name: str | None = None) -> asyncio.Task[None]:
        """Start a background task, and return it at once."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.add(task)
        task.add_done_callback(self.discard)
        return task


async def first(*coroutines: Coroutine[Any, Any, T]) -> T:
    """Return the result of the first coroutine to end, and cancel the others. If several have ended, the
    earliest argument wins."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]
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
