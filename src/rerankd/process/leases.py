"""Who uses an engine: many calls side by side, or one call alone."""

from __future__ import annotations

from rerankd.process.tasks import Changes


class Leases:
    """The calls under way on one engine. One that wants the engine alone waits until the others have ended,
    and those that come later wait for it."""

    def __init__(self) -> None:
        self.count = 0
        self._is_alone = False
        self._waiting_alone = 0
        self._changes = Changes()

    async def enter(self, *, alone: bool = False) -> None:
        """Wait for a lease, and have it until `leave`."""
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
        """Give a lease back."""
        self.count -= 1
        self._is_alone = False
        self._changes.tell()

    async def unused(self) -> None:
        """Wait until no call is under way."""
        while self.count:
            await self._changes.wait()
