"""Memory limits for request and response bodies, shared fairly among clients.

A request body uses memory from its first byte until it is parsed, a response body until it is sent. Together
they may use `most_bytes`:

- A body of up to SMALL_BYTES is accepted if it fits.
- Larger bodies may use three quarters of the memory, and those of one client an eighth. If one client sends
  many large bodies, only that client waits.
- A response is always accepted, because its work is done; it counts against the next requests of its client.
- A body of any size is accepted if nothing else is in memory. A client's only large body is exempt from the
  limit of an eighth.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

SMALL_BYTES = 2**20
_FOR_LARGE = 3 / 4
_FOR_ONE_CLIENT = 1 / 8


@dataclass(slots=True, eq=False)
class Hold:
    """The memory that one request uses. It is released at `until` at the latest, by the clock of Shares."""

    client: str
    until: float
    size_bytes: int = 0

    @property
    def is_large(self) -> bool:
        return self.size_bytes > SMALL_BYTES


@dataclass(slots=True, eq=False)
class _Waiting:
    hold: Hold
    size_bytes: int
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Shares:
    """All memory in use by the bodies of a service, and the requests that wait for memory."""

    def __init__(
        self, most_bytes: int, now: Callable[[], float], changed: Callable[[int], object] = lambda _: None
    ) -> None:
        """`changed` is called with the bytes in use each time that they change."""
        self.most_bytes = most_bytes
        self.size_bytes = 0
        self._now = now
        self._changed = changed
        self._holds: set[Hold] = set()
        self._large: Counter[str] = Counter()
        self._waiting: deque[_Waiting] = deque()

    def may_grow(self, hold: Hold, size_bytes: int) -> bool:
        """Return whether `hold` may grow by `size_bytes`."""
        own = hold.size_bytes + size_bytes
        total = self.size_bytes + size_bytes
        if total == own:
            return True
        if own <= SMALL_BYTES:
            return total <= self.most_bytes
        of_client = self._large[hold.client] - (hold.size_bytes if hold.is_large else 0)
        if of_client and of_client + own > self.most_bytes * _FOR_ONE_CLIENT:
            return False
        return total <= self.most_bytes * _FOR_LARGE

    def grow(self, hold: Hold, size_bytes: int) -> None:
        """Add `size_bytes` to `hold` regardless of the limits."""
        self._set(hold, hold.size_bytes + size_bytes)

    async def take(self, hold: Hold, size_bytes: int, timeout_s: float) -> bool:
        """Wait until `hold` may grow by `size_bytes`, and grow it. After `timeout_s`, return False
        instead."""
        if self.may_grow(hold, size_bytes):
            self.grow(hold, size_bytes)
            return True
        waiting = _Waiting(hold, size_bytes)
        self._waiting.append(waiting)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await waiting.turn
        finally:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
        return waiting.turn.done() and not waiting.turn.cancelled()

    def release(self, hold: Hold) -> None:
        """Release the memory of `hold` and wake up waiting requests. Can be called again."""
        self._set(hold, 0)
        for waiting in list(self._waiting):
            if self.may_grow(waiting.hold, waiting.size_bytes) and not waiting.turn.done():
                self._waiting.remove(waiting)
                self.grow(waiting.hold, waiting.size_bytes)
                waiting.turn.set_result(None)

    def retry_after_s(self, hold: Hold, size_bytes: int) -> int:
        """Return the seconds until `hold` may grow by `size_bytes` at the latest: each hold ends at its
        `until`."""
        own = [one for one in self._holds if one.client == hold.client and one.is_large and one is not hold]
        is_small = hold.size_bytes + size_bytes <= SMALL_BYTES
        most = self.most_bytes * (1 if is_small else _FOR_LARGE)
        over = self.size_bytes + size_bytes - most
        rows = sorted((one for one in self._holds if one is not hold), key=lambda one: one.until)
        until = self._now()
        for one in rows:
            if over <= 0:
                break
            over -= one.size_bytes
            until = one.until
        if own and not is_small:
            until = max(until, max(one.until for one in own))
        return max(math.ceil(until - self._now()), 1)

    def _set(self, hold: Hold, size_bytes: int) -> None:
        if hold.is_large:
            self._large[hold.client] -= hold.size_bytes
        self.size_bytes += size_bytes - hold.size_bytes
        hold.size_bytes = size_bytes
        if hold.is_large:
            self._large[hold.client] += size_bytes
        elif not self._large[hold.client]:
            del self._large[hold.client]
        (self._holds.add if size_bytes else self._holds.discard)(hold)
        self._changed(self.size_bytes)
