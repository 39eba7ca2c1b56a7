"""Leases on an engine: a lock shared by concurrent calls, or held exclusively by one call."""

from __future__ import annotations

from rerankd.process.tasks import Changes


class Leases:
    """Counts the running calls of one engine. An exclusive call (`alone`) waits until the others have ended,
    and calls that arrive later wait for it."""

    def __init__(self) -> None:
        self.count = 0
        self._is_alone = False
        self._waiting_alone = 0
        self._changes = Changes()

    async def enter(self, *, alone: bool = False) -> None:
        """Acquire a lease, which `leave` releases."""
        if alone:
            self._waiting_alone += 1
            try:
                while self.count:
                    await self._changes.wait()
            finally:
                self._waiting_alone -= 1
                self._changes.tell()
        else:
            while self._is_alone or self._waiting_alone:
                await self._changes.wait()
        self.count += 1
        self._is_alone = alone

    def leave(self) -> None:
        """Release a lease."""
        self.count -= 1
        self._is_alone = False
        self._changes.tell()

    async def unused(self) -> None:
        """Wait until no call is running."""
        while self.count:
            await self._changes.wait()
