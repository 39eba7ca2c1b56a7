"""The queue of one model: requests wait here for their scores, and engines take batches from it.

scheduler.py makes the decisions. This module carries them out, with a task for each batch that an engine has,
a future for each waiting request, and timers for time budgets. A batch is started when a request arrives,
when another batch ends, and shortly before one is expected to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import copy
import functools
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from rerankd.backends.base import BatchPolicy
from rerankd.client import Client
from rerankd.errors import EngineUnavailable, Overloaded, Stopping
from rerankd.scoring.block_scores import Block
from rerankd.scoring.engine_input import Input
from rerankd.serving import queue_steps
from rerankd.serving.admission import LimitReached
from rerankd.serving.queue_scores import Answer, Scores
from rerankd.serving.scheduler import NextBatch, Scheduler

_CANCELLED = EngineUnavailable("The engine was stopped while it scored this request. Try again.")

Score = Callable[[Sequence[Input], Callable[[int], bool]], Coroutine[Any, Any, Answer]]
"""Scores the inputs of a batch. The second argument returns whether a client still waits for the input at an
index."""


@dataclass(eq=False, slots=True)
class QueuedRequest:
    """A request in the queue. `waited_s` is the time from its first inputs being queued to their first
    batch."""

    _queue: Queue
    _request: int
    _client: Client
    waited_s: float = 0.0
    _since: float | None = None
    _over: asyncio.Future[None] | None = None
    _inputs: Sequence[Input] = ()
    # Each input is in `_waiting`, then in `_at_engine`. Then it has a score, an error, or neither.
    _waiting: set[int] = field(default_factory=set)
    _at_engine: set[int] = field(default_factory=set)
    _unscored: set[int] = field(default_factory=set)
    _values: list[Any] = field(default_factory=list)
    _errors: dict[int, str] = field(default_factory=dict)
    _blocks: dict[int, Block] = field(default_factory=dict)
    _batches: set[_Batch] = field(default_factory=set)
    _steps: queue_steps.QueueSteps | None = field(default_factory=queue_steps.current)

    async def score(
        self,
        inputs: Sequence[Input],
        *,
        until: float | None = None,
        latest: float | None = None,
        blocks: Sequence[Sequence[int]] = (),
    ) -> Scores:
        """Score inputs that have the same question. Each of `blocks`, if any, becomes one batch. Call this
        again only after it has returned, and before `latest`.

        With `until`, inputs are scored in their order, and no input is started that would not be finished by
        then. Inputs that were started are waited for until `latest`. Both are in seconds of the queue's clock
        (time.monotonic). Raises Overloaded if the inputs or tokens are too many, and what the engine raises.
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
        if self._steps is not None:
            self._steps.enqueued(self._since)
        self._over = loop.create_future()
        self._inputs, self._values, self._waiting = inputs, [None] * len(inputs), set(range(len(inputs)))
        self._errors, self._unscored, self._blocks = {}, set(), {}
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
            if self._steps is not None:
                self._steps.finish(queue.now())
            self._release()
        return Scores(self._values, self._errors, frozenset(self._unscored), self._blocks)

    @property
    def is_over(self) -> bool:
        """Whether the request waits for no more scores."""
        return self._over is None or self._over.done()

    def _begin(self, at: int, batch: _Batch) -> Input:
        if self._since is not None:
            self.waited_s, self._since = self.waited_s or self._queue.now() - self._since, None
        if self._steps is not None:
            self._steps.begin(batch, batch.given, self._queue.now())
        self._waiting.remove(at)
        self._at_engine.add(at)
        self._batches.add(batch)
        return self._inputs[at]

    def _answer(self, at: int, value: Any, error: str | None) -> None:
        self._at_engine.remove(at)
        self._values[at] = value
        if error is not None:
            self._errors[at] = error
        self._check()

    def _drop(self) -> None:
        """Drop the waiting inputs, because they would not be finished in time."""
        self._unscored |= self._waiting
        self._waiting.clear()
        self._check()

    def _give_up(self) -> None:
        """The time to wait for inputs at an engine is over."""
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
            # The waiting task may be cancelled at this moment and never read the exception.
            self._over.exception()
            self._release()

    def _release(self) -> None:
        """Drop the waiting inputs, and cancel batches that no other request waits for."""
        self._queue.scheduler.drop_waiting(self._request)
        for batch in self._batches:
            batch.end_if_unwanted()


@dataclass(eq=False, slots=True)
class _Batch:
    """A batch at an engine, and for each of its inputs the request and the index there."""

    given: NextBatch
    owners: Sequence[tuple[QueuedRequest, int]]
    task: asyncio.Task[Answer] | None = None

    def is_wanted(self, at: int) -> bool:
        return not self.owners[at][0].is_over

    def end_if_unwanted(self) -> None:
        if self.task is not None and all(request.is_over for request, _ in self.owners):
            self.task.cancel()


class Queue:
    """Admits requests, and has engines score their inputs in batches.

    `policy` returns the backend's limits for batches. `score` scores a batch; an exception that it raises
    fails all requests of the batch.
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
        """Admit a request until the block ends. Raises Overloaded, or Stopping after `close`."""
        if self._closed:
            raise Stopping("rerankd is shutting down and accepts no new requests. Retry later.")
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
        """Admit no more requests."""
        self._closed = True

    @property
    def is_closed(self) -> bool:
        return self._closed

    async def wait_empty(self) -> None:
        """Wait until no request is queued or being scored."""
        await self._empty.wait()

    def overloaded(self, full: LimitReached, client: Client) -> Overloaded:
        """The error for a request that exceeds a limit."""
        wait_s = self.scheduler.retry_after_s(full, client)
        return Overloaded(f"{full} Retry in about {wait_s} s.", retry_after_s=wait_s)

    def start_batches(self) -> None:
        """Start batches until the engines accept no more."""
        policy, now = self._policy(), self.now()
        while True:
            for request in self.scheduler.drop_late(now):
                self._requests[request]._drop()
            if len(self._under_way) >= policy.at_engine * self.scheduler.engines:
                return
            at = self.scheduler.next_batch_at(policy, len(self._under_way))
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
        # In an empty context, so that its log lines do not carry the id of an unrelated request.
        batch.task = asyncio.get_running_loop().create_task(
            self._score(inputs, batch.is_wanted), context=contextvars.Context()
        )
        batch.task.add_done_callback(functools.partial(self._ended, batch))
        self._under_way.add(batch)

    def _ended(self, batch: _Batch, task: asyncio.Task[Answer]) -> None:
        self._under_way.remove(batch)
        error = _CANCELLED if task.cancelled() else task.exception()
        if error is None and (vectors := task.result().block) is not None:
            request, first = batch.owners[0]
            request._blocks[first] = vectors
        self.scheduler.batch_done(batch.given, self.now(), is_scored=error is None)
        for number, (request, at) in enumerate(batch.owners):
            request._batches.discard(batch)
            if request._steps is not None:
                request._steps.end(batch, self.now())
            if request.is_over:
                continue
            if error is not None:
                request._fail(copy.copy(error))  # one copy each: a raised error collects tracebacks
                continue
            answer = task.result()
            if (failure := answer.failures.get(number)) is not None:
                request._fail(failure)
            else:
                request._answer(at, answer.values[number], answer.errors.get(number))
        self.start_batches()
