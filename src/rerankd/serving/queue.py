"""The queue of one model: requests wait in it for their scores, and engines get their batches from it.

What is decided is in scheduler.py; here are the acts: a task for each batch under way, a future for each
request that waits, and timers for time budgets. A batch is begun when a request comes, when another batch
ends, and shortly before one is expected to end."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rerankd.backends.base import BatchPolicy
from rerankd.errors import EngineUnavailable, Overloaded, RerankdError, Stopping
from rerankd.scoring.engine_input import Input
from rerankd.serving.admission import ANONYMOUS, Client, LimitReached, QueueLimits
from rerankd.serving.scheduler import WEIGHTS, NextBatch, Scheduler

__all__ = [
    "ANONYMOUS",
    "WEIGHTS",
    "Answer",
    "Client",
    "Queue",
    "QueueLimits",
    "QueuedRequest",
    "Scheduler",
    "Scores",
]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a batch came to, by the request in it: the raw value of each input; None where `errors` says why it
    has none, where `failures` holds what its request fails with, or where nobody wants it any more."""

    values: Sequence[float | None]
    errors: Mapping[int, str] = field(default_factory=dict)
    failures: Mapping[int, RerankdError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scores:
    """What a request gets, by the request of each input: its raw value; None where `errors` says why it has
    none, and for the inputs in `unscored`, for which the time was too short."""

    values: Sequence[float | None]
    errors: Mapping[int, str]
    unscored: frozenset[int]


_CANCELLED = EngineUnavailable("The engine was stopped while it scored this. Try again.")

Score = Callable[[Sequence[Input], Callable[[int], bool]], Coroutine[Any, Any, Answer]]
"""Scores the inputs of a batch. The second argument tells whether the input at a request is still wanted."""


@dataclass(eq=False, slots=True)
class QueuedRequest:
    """One request's request in the queue. `waited_s` is how long its inputs waited for the first batch."""

    _queue: Queue
    _request: int
    _client: Client
    waited_s: float = 0.0
    _since: float | None = None
    _over: asyncio.Future[None] | None = None
    _inputs: Sequence[Input] = ()
    # An input is in the first of these, then in the second, then it has a value, an error, or neither.
    _waiting: set[int] = field(default_factory=set)
    _at_engine: set[int] = field(default_factory=set)
    _unscored: set[int] = field(default_factory=set)
    _values: list[float | None] = field(default_factory=list)
    _errors: dict[int, str] = field(default_factory=dict)
    _batches: set[_Batch] = field(default_factory=set)

    async def score(
        self,
        inputs: Sequence[Input],
        *,
        until: float | None = None,
        latest: float | None = None,
        blocks: Sequence[Sequence[int]] = (),
    ) -> Scores:
        """The value of each input, of one question. Each of `blocks`, if any, is a batch of its own. To be
        called again only when it has returned, before `latest`.

        With `until`, inputs are scored in their order, and none is begun that would not be done by then. What
        has begun is waited for until `latest`. Both are in seconds of the queue's clock (time.monotonic).
        Raises Overloaded where there are too many inputs or tokens, and what the engine raises.
        """
        if not inputs:
            return Scores((), {}, frozenset())
        queue, tokens = self._queue, [one.tokens for one in inputs]
        if full := queue.scheduler.enqueue(
            self._request, tokens, question=inputs[0].question.key, until=until, blocks=blocks
        ):
            raise queue.overloaded(full, self._client)
        loop = asyncio.get_running_loop()
        self._since = queue.now()
        self._over = loop.create_future()
        self._inputs, self._values, self._waiting = inputs, [None] * len(inputs), set(range(len(inputs)))
        self._errors, self._unscored = {}, set()
        timers = []
        if until is not None:
            passed = loop.time() - queue.now()
            timers.append(loop.call_at(passed + until, queue.start_batches))
            timers.append(loop.call_at(passed + (latest or until), self._give_up))
        queue.start_batches()
        try:
            await self._over
        finally:
            for timer in timers:
                timer.cancel()
            self._release()
        return Scores(self._values, self._errors, frozenset(self._unscored))

    @property
    def is_over(self) -> bool:
        """Whether nothing is wanted any more."""
        return self._over is None or self._over.done()

    def _begin(self, at: int, batch: _Batch) -> Input:
        if self._since is not None:
            self.waited_s, self._since = self.waited_s or self._queue.now() - self._since, None
        self._waiting.remove(at)
        self._at_engine.add(at)
        self._batches.add(batch)
        return self._inputs[at]

    def _answer(self, at: int, value: float | None, error: str | None) -> None:
        self._at_engine.remove(at)
        self._values[at] = value
        if error is not None:
            self._errors[at] = error
        self._check()

    def _drop(self) -> None:
        """What waits won't be scored: it would not be done in time."""
        self._unscored |= self._waiting
        self._waiting.clear()
        self._check()

    def _give_up(self) -> None:
        """The time is over for what has begun, too."""
        self._unscored |= self._at_engine
        self._at_engine.clear()
        self._drop()
        self._release()

    def _check(self) -> None:
        if not self._waiting and not self._at_engine and not self.is_over:
            assert self._over is not None
            self._over.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_exception(error)
            # Whoever waits may be cancelled in this moment, and never look at it.
            self._over.exception()
            self._release()

    def _release(self) -> None:
        """Nothing is wanted any more: what waits is dropped, and batches that nobody else needs end."""
        self._queue.scheduler.drop_waiting(self._request)
        for batch in self._batches:
            batch.end_if_unwanted()


@dataclass(eq=False, slots=True)
class _Batch:
    """A batch at an engine: whose each input is, and its request there."""

    given: NextBatch
    owners: Sequence[tuple[QueuedRequest, int]]
    task: asyncio.Task[Answer] | None = None

    def is_wanted(self, at: int) -> bool:
        return not self.owners[at][0].is_over

    def end_if_unwanted(self) -> None:
        if self.task is not None and all(request.is_over for request, _ in self.owners):
            self.task.cancel()


class Queue:
    """Lets requests in, and has engines score their inputs.

    `policy` tells how the engines get their work. `score` scores a batch; what it raises ends all requests of
    the batch.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        policy: Callable[[], BatchPolicy],
        score: Score,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self.now = now
        self._policy = policy
        self._score = score
        self._requests: dict[int, QueuedRequest] = {}
        self._under_way: set[_Batch] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._count = 0
        self._closed = False
        self._empty = asyncio.Event()
        self._empty.set()

    @contextlib.contextmanager
    def admit(
        self, client: Client, documents: int, size_bytes: int, weight: float = 1.0
    ) -> Iterator[QueuedRequest]:
        """A request for a request, until the block ends. Raises Overloaded, or Stopping after `close`."""
        if self._closed:
            raise Stopping("rerankd is stopping and takes no new requests. Ask another one, or try again.")
        self._count += 1
        request = self._count
        if full := self.scheduler.admit(request, client, size_bytes, documents, weight):
            raise self.overloaded(full, client)
        self._requests[request] = QueuedRequest(self, request, client)
        self._empty.clear()
        try:
            yield self._requests[request]
        finally:
            self.scheduler.remove(request)
            del self._requests[request]
            if not self._requests:
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

    def overloaded(self, full: LimitReached, client: Client) -> Overloaded:
        """What a request is told for which something is full."""
        wait_s = self.scheduler.retry_after_s(full, client)
        if full.is_share:
            told = f"This client has {full.words} under way and waiting; the rest of the queue is for others."
        else:
            told = f"The queue is full: {full.words} under way and waiting."
        return Overloaded(f"{told} Try again in about {wait_s} s.", retry_after_s=wait_s)

    def start_batches(self) -> None:
        """Begin batches until the engines have no room for another."""
        policy, now = self._policy(), self.now()
        while True:
            for request in self.scheduler.drop_late(now):
                self._requests[request]._drop()
            if len(self._under_way) >= policy.at_engine * self.scheduler.engines:
                return
            at = self.scheduler.next_batch_at(len(self._under_way))
            if at > now:
                self._start_batches_in(at - now)
                return
            given = self.scheduler.next_batch(policy, now)
            if not given.inputs:
                return
            self._begin(given)

    def _start_batches_in(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if seconds < math.inf:
            self._timer = asyncio.get_running_loop().call_later(seconds, self.start_batches)

    def _begin(self, given: NextBatch) -> None:
        batch = _Batch(given, [(self._requests[request], at) for request, at in given.inputs])
        inputs = [request._begin(at, batch) for request, at in batch.owners]
        # Its log lines are not those of the request that happened to come, or of a batch before.
        batch.task = asyncio.get_running_loop().create_task(
            self._score(inputs, batch.is_wanted), context=contextvars.Context()
        )
        batch.task.add_done_callback(functools.partial(self._ended, batch))
        self._under_way.add(batch)

    def _ended(self, batch: _Batch, task: asyncio.Task[Answer]) -> None:
        self._under_way.remove(batch)
        error = _CANCELLED if task.cancelled() else task.exception()
        self.scheduler.batch_done(batch.given, self.now(), is_scored=error is None)
        for number, (request, at) in enumerate(batch.owners):
            request._batches.discard(batch)
            if request.is_over:
                continue
            if error is not None:
                request._fail(copy.copy(error))  # one for each: a raised error collects tracebacks
                continue
            answer = task.result()
            if (failure := answer.failures.get(number)) is not None:
                request._fail(failure)
            else:
                request._answer(at, answer.values[number], answer.errors.get(number))
        self.start_batches()
