"""Who may use the engine next, and who has to come again later.

A request brings many texts, the engine takes few at a time, and other requests wait. So the engine is given
micro-batches in turns: `Line` decides whose, as data and without a clock; `FairQueue` lets tasks wait for
their turn.

The order of turns is round robin by request, the one whose last turn is longest ago first. A request that
has just come counts as served now, but before the one that really was, and where the engine works on one
micro-batch after the other, its first four turns come together. So sixteen documents wait for the two
micro-batches that are with the engine, and for no third of the same bulk request. (With turns of one each,
ten documents took 3.1 times as long beside a bulk client as alone; so they take 2.5 times as long, see
bench/fairness.py.) Nobody starves: a request is passed only by those that had come by its last turn. An
engine that shares its time between what it has is given a little of every request instead (see plan.Feed);
there turns matter only among more requests than it takes.

Retry-After is what must be scored before there is room, over the documents a second that were scored while
the engine had work (a mean over the last minute or so of such time).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field

from rerankd.config import Settings
from rerankd.errors import Overloaded, Stopping
from rerankd.scoring.plan import IN_TURN, BatchPolicy

_MEMORY_S = 60.0
_LONGEST_RETRY_S = 120
# Before anything was measured: slow enough not to promise too much.
_FIRST_RATE = 10.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all requests under way and waiting may hold together."""

    requests: int
    documents: int
    size_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        """Those of the settings, for the queue of one model."""
        return cls(settings.max_requests, settings.max_queue_documents, settings.max_queue_bytes)


@dataclass(slots=True)
class _Place:
    documents: int
    size_bytes: int
    served: tuple[int, bool]
    waiting: int = 0
    turns: int = 0
    at_engine: int = 0


class Line:
    """The policy. Its methods are the events; a request is a number that the caller makes up."""

    def __init__(self, bounds: Bounds, feed: BatchPolicy = IN_TURN, *, engines: int = 1) -> None:
        """`engines` is how many there are to work on the requests."""
        self.bounds = bounds
        self._first_turns = feed.first_turns
        self._most = feed.at_engine * engines
        self._most_of_one = feed.of_one * engines
        self._at_engine = 0
        self.documents = 0
        self.size_bytes = 0
        self._places: dict[int, _Place] = {}
        self._turn = 0
        self._scored = 0.0
        self._busy_s = 0.0

    def __len__(self) -> int:
        return len(self._places)

    @property
    def rate(self) -> float:
        """Documents a second, while the engine has work."""
        return self._scored / self._busy_s if self._scored and self._busy_s else _FIRST_RATE

    def join(self, request: int, documents: int, size_bytes: int) -> str | None:
        """Take a request in; or say what is full, and take nothing. Whatever its size, one is taken where
        there is no other."""
        bounds = self.bounds
        if self._places:
            if len(self._places) >= bounds.requests:
                return f"{len(self._places)} requests"
            if self.documents + documents > bounds.documents:
                return f"{self.documents} documents"
            if self.size_bytes + size_bytes > bounds.size_bytes:
                return f"{self.size_bytes / 2**20:.1f} MiB of text"
        self._places[request] = _Place(documents, size_bytes, served=(self._turn, False))
        self.documents += documents
        self.size_bytes += size_bytes
        return None

    def retry_after_s(self, documents: int) -> int:
        """Seconds until a request of so many documents that was not taken should find room."""
        over = self.documents + documents - self.bounds.documents
        if over <= 0:  # something else is full: one request has to end
            over = min((place.documents for place in self._places.values()), default=1)
        return min(max(math.ceil(over / self.rate), 1), _LONGEST_RETRY_S)

    def want(self, request: int) -> None:
        """The request has a micro-batch to be scored."""
        self._places[request].waiting += 1

    def unwant(self, request: int) -> None:
        """One of the request's waiting micro-batches is not to be scored any more."""
        self._places[request].waiting -= 1

    def next(self) -> int | None:
        """The request whose turn it is, if any waits and the engine has room; the turn lasts until `done`."""
        waiting = [
            (place.served, request)
            for request, place in self._places.items()
            if place.waiting and place.at_engine < self._most_of_one
        ]
        if not waiting or self._at_engine >= self._most:
            return None
        _, request = min(waiting)
        self._turn += 1
        place = self._places[request]
        place.waiting -= 1
        place.turns += 1
        place.at_engine += 1
        self._at_engine += 1
        if place.turns >= self._first_turns:
            place.served = (self._turn, True)
        return request

    def done(self, request: int) -> None:
        """A turn of the request has ended."""
        self._places[request].at_engine -= 1
        self._at_engine -= 1

    @property
    def is_busy(self) -> bool:
        """Whether the engine has work."""
        return self._at_engine > 0

    def scored(self, request: int, documents: int) -> None:
        """So many of the request's documents are done."""
        place = self._places[request]
        done = min(documents, place.documents)
        place.documents -= done
        self.documents -= done
        self._scored += documents

    def was_busy(self, seconds: float) -> None:
        """The engine had work for so long, up to now."""
        # What is older than the memory fades.
        keep = max(1 - seconds / _MEMORY_S, 0.0)
        self._scored *= keep
        self._busy_s = self._busy_s * keep + seconds

    def leave(self, request: int) -> None:
        """The request has ended, one way or another."""
        place = self._places.pop(request)
        self.documents -= place.documents
        self.size_bytes -= place.size_bytes


@dataclass(slots=True)
class Place:
    """One request's place in the queue. `waited_s` is how long it waited for its first turn."""

    _queue: FairQueue
    _request: int
    _joined: float
    waited_s: float = 0.0
    _turns: int = 0
    _waiters: deque[asyncio.Future[None]] = field(default_factory=deque)

    @contextlib.asynccontextmanager
    async def turn(self, documents: int) -> AsyncIterator[None]:
        """Wait for a turn of this request, and have it. The documents count as done if nothing is raised."""
        await self._queue._wait(self)
        if not self._turns:
            self.waited_s = self._queue.now() - self._joined
        self._turns += 1
        done = 0
        try:
            yield
            done = documents
        finally:
            self._queue._give_back(self, done)


class FairQueue:
    """Lets requests in, and gives them turns at the engine."""

    def __init__(self, line: Line, *, now: Callable[[], float] = time.monotonic) -> None:
        self.line = line
        self.now = now
        self._places: dict[int, Place] = {}
        self._count = 0
        self._busy_since = 0.0
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @contextlib.contextmanager
    def admit(self, documents: int, size_bytes: int) -> Iterator[Place]:
        """A place for a request, until the block ends. Raises Overloaded, or Stopping after `close`."""
        if self._closed:
            raise Stopping("rerankd is stopping and takes no new requests. Ask another one, or try again.")
        self._count += 1
        request = self._count
        full = self.line.join(request, documents, size_bytes)
        if full is not None:
            retry_after_s = self.line.retry_after_s(documents)
            raise Overloaded(
                f"rerankd has {full} under way and waiting, and takes no more at a time. By the "
                f"{self.line.rate:.3g} documents a second it scores now, there is room in about "
                f"{retry_after_s} s.",
                retry_after_s=retry_after_s,
            )
        place = self._places[request] = Place(self, request, self.now())
        self._empty.clear()
        try:
            yield place
        finally:
            self.line.leave(request)
            del self._places[request]
            if not self._places:
                self._empty.set()

    def close(self) -> None:
        """Admit nobody any more."""
        self._closed = True

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def wait_empty(self) -> None:
        """Wait until no request is under way."""
        await self._empty.wait()

    async def _wait(self, place: Place) -> None:
        self.line.want(place._request)
        waiter = asyncio.get_running_loop().create_future()
        place._waiters.append(waiter)
        self._hand_out()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter in place._waiters:
                place._waiters.remove(waiter)
                self.line.unwant(place._request)
            elif not waiter.cancelled():  # its turn had come, and it can't use it any more
                self._give_back(place, 0)
            raise

    def _hand_out(self) -> None:
        while True:
            was_busy = self.line.is_busy
            request = self.line.next()
            if request is None:
                return
            waiter = self._places[request]._waiters.popleft()
            if waiter.cancelled():  # its task has yet to learn of it
                self.line.done(request)
                continue
            if not was_busy:
                self._busy_since = self.now()
            waiter.set_result(None)

    def _give_back(self, place: Place, documents: int) -> None:
        now = self.now()
        self.line.was_busy(now - self._busy_since)
        self._busy_since = now
        self.line.scored(place._request, documents)
        self.line.done(place._request)
        self._hand_out()
