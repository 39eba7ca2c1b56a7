"""Ways to wait: for a change, for the first of several, for ever."""

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
