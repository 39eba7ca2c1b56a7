"""(pure) Schedule the queue of one model: admit requests, and form the next batch for an engine.

Every batch is formed here, when an engine can accept one. turn_order.py decides which request is next. Its
inputs form the batch, and other requests fill what remains of it with inputs that fit (see batches.py).

The inputs of a request with a time budget are scored in the request's order. None is started that the engine
would not finish in time, according to its measured throughput and the work it already has. They are dropped
when even an idle engine would not finish them in time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from rerankd.backends.base import BatchPolicy
from rerankd.client import Client
from rerankd.domain import Priority
from rerankd.serving.admission import LimitReached, QueueLimits, Usage, UsageByClient
from rerankd.serving.batch_size import BatchLimits, BatchSize
from rerankd.serving.batches import Others, Part, form
from rerankd.serving.throughput import Throughput
from rerankd.serving.turn_order import TurnOrder
from rerankd.serving.waiting_inputs import WaitingInputs

WEIGHTS: Mapping[Priority, float] = {"low": 0.25, "normal": 1.0, "high": 4.0}
"""The weight of a request compared with others of its client, and of a client compared with other clients."""

_LONGEST_RETRY_S = 120
# Assumed tokens per document until some are counted.
_TYPICAL = 100.0


class NextBatch(NamedTuple):
    """The next batch: the request of each input and the index in that request, empty if nothing waits; and
    the tokens that the engine computes, including padding."""

    inputs: Sequence[tuple[int, int]] = ()
    tokens: int = 0


@dataclass(slots=True)
class _Request:
    client: Client
    weight: float
    usage: Usage = field(default_factory=Usage)
    waiting: WaitingInputs = field(default_factory=lambda: WaitingInputs(()))
    until: float | None = None
    at_engine: int = 0


class Scheduler:
    """The waiting and running inputs of `engines` engines. Its methods are the events. The caller numbers the
    requests; `now` is in seconds of any one clock."""

    def __init__(self, queue_limits: QueueLimits, *, engines: int = 1) -> None:
        self.queue_limits = queue_limits
        self._usage = UsageByClient()
        self.throughput = Throughput()
        self.engines = engines
        self.batch_size = BatchSize()
        self._requests: dict[int, _Request] = {}
        self._turns = TurnOrder()
        # The requests with a time budget that have waiting inputs. Requests in `_resting` get no turn before
        # a batch has ended: either the throughput is not known yet, or the engine is too busy now but may
        # turn out to be faster.
        self._timed: dict[int, float] = {}
        self._resting: set[int] = set()

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def usage(self) -> Usage:
        """The usage of all requests that wait or are being scored."""
        return self._usage.total

    # Requests arrive and leave.

    def admit(
        self, request: int, client: Client, size_bytes: int, documents: int, weight: float = 1.0
    ) -> LimitReached | None:
        """Admit a request, or return the limit that it exceeds. A request is always admitted if there is no
        other, whatever its size."""
        added = Usage(1, documents, 0, size_bytes)
        full = (
            self._usage.limit_reached(self.queue_limits, client.name, Usage(), added)
            if self._requests
            else None
        )
        if full is None:
            self._requests[request] = _Request(client, weight)
            self._hold(self._requests[request], Usage(), added)
        return full

    def enqueue(
        self,
        request: int,
        tokens: Sequence[int],
        *,
        question: bytes = b"",
        until: float | None = None,
        blocks: Sequence[Sequence[int]] = (),
    ) -> LimitReached | None:
        """Queue the inputs of a request: the tokens of each, and the key of their question. If they exceed a
        limit, return it and queue none. No input is started that would not be finished by `until`. Each of
        `blocks` becomes one batch."""
        entry = self._requests[request]
        less, more = entry.usage._replace(requests=0, size_bytes=0), Usage(0, len(tokens), sum(tokens), 0)
        if len(self._requests) > 1:
            full = self._usage.limit_reached(self.queue_limits, entry.client.name, less, more)
            if full is not None:
                return full
        self._hold(entry, less, more)
        if tokens:
            entry.waiting = WaitingInputs(
                tokens, question=question, is_ordered=until is not None, blocks=blocks
            )
            entry.until = until
            if until is not None:
                self._timed[request] = until
            self._wait(request)
        return None

    def drop_waiting(self, request: int) -> None:
        """Drop the waiting inputs of a request."""
        entry = self._requests[request]
        self._hold(entry, Usage(0, *entry.waiting.clear(), 0), Usage())
        self._stop_waiting(request)

    def remove(self, request: int) -> None:
        """Remove a request that has ended. Scores for its inputs at an engine are discarded."""
        self.drop_waiting(request)
        entry = self._requests.pop(request)
        self._hold(entry, entry.usage, Usage())

    def retry_after_s(self, limit: LimitReached, client: Client) -> int:
        """The estimated seconds until the queue can admit a request that exceeded this limit."""
        typical = self.usage.tokens / self.usage.documents if self.usage.tokens else _TYPICAL
        if limit.what == "tokens":
            over = float(limit.over)
        elif limit.what == "documents":
            over = limit.over * typical
        else:  # one request has to end
            counted = (
                one for one in self._requests.values() if not limit.is_share or one.client.name == client.name
            )
            over = min((one.usage.tokens or one.usage.documents * typical for one in counted), default=0.0)
        return min(max(math.ceil(over / self.throughput.tokens_per_s), 1), _LONGEST_RETRY_S)

    # Batches for the engines.

    def limits(self, policy: BatchPolicy) -> BatchLimits:
        """The current limits of one batch."""
        speed = self.throughput.tokens_per_s / self.engines if self.throughput.is_measured else None
        return self.batch_size.limits(policy, speed)

    def drop_late(self, now: float) -> list[int]:
        """Drop inputs that can no longer be scored in time. Returns the requests whose waiting inputs were
        dropped."""
        late = []
        for request, until in self._timed.items():
            first = self._requests[request].waiting.first()
            if now >= until or (self.throughput.is_measured and self.throughput.capacity(now, until) < first):
                late.append(request)
        for request in late:
            self.drop_waiting(request)
        return late

    def next_batch_at(self, policy: BatchPolicy, under_way: int) -> float:
        """The time from which the next batch may be started, with `under_way` batches at the engines."""
        if not self._turns:
            return math.inf
        is_ahead = self.engines == 1 and under_way > 0 and self.throughput.is_measured
        return self.throughput.next_batch_at(policy.ahead_s) if is_ahead else -math.inf

    def next_batch(self, policy: BatchPolicy, now: float) -> NextBatch:
        """Form the next batch, which is at the engine from now on. Call `drop_late` for the same moment
        first."""
        while (turn := self._turns.next(policy.run_tokens)) is not None and self._is_busy_for(turn[0], now):
            self._rest(turn[0])
        if turn is None:
            return NextBatch()
        parts = self._form(policy, *turn, now)
        for part in parts:
            self._charge(part, turn[0])
        tokens = sum(part.tokens for part in parts)
        self.throughput.batch_begun(now, tokens)
        inputs = [(part.request, at) for part in parts for at in part.indexes]
        return NextBatch(inputs, tokens)

    def batch_done(self, batch: NextBatch, now: float, *, is_scored: bool = True) -> None:
        """The engine has finished a batch; with `is_scored` False, it returned no scores."""
        self.throughput.batch_ended(now, batch.tokens, len(batch.inputs), is_scored=is_scored)
        for request, inputs in itertools.groupby(batch.inputs, key=itemgetter(0)):
            if (entry := self._requests.get(request)) is not None:
                tokens = [entry.waiting.lengths[at] for _, at in inputs]
                entry.at_engine -= len(tokens)
                self._hold(entry, Usage(0, len(tokens), sum(tokens), 0), Usage())
        for request in tuple(self._resting):
            if self.throughput.is_measured or not self._requests[request].at_engine:
                self._resting.discard(request)
                self._wait(request)

    def _form(self, policy: BatchPolicy, lead: int, is_ahead: bool, now: float) -> list[Part]:
        entry = self._requests[lead]
        limits = self.limits(policy)
        if entry.until is not None and self.throughput.is_measured:
            limits = BatchLimits(
                min(limits.tokens, self.throughput.spare_capacity(now, entry.until)), limits.inputs
            )
        others = self._others(lead, is_ahead, limits.tokens, now)
        return form(policy, limits, lead, entry.waiting, others)

    def _others(self, lead: int, is_ahead: bool, tokens: int, now: float) -> Others:
        """The requests that may add inputs to the batch of `lead`, which has up to `tokens` tokens. A request
        with a time budget is included only if that batch is certain to be finished in time."""
        for request in self._turns.others(lead, is_ahead):
            entry = self._requests[request]
            if entry.until is None or (
                self.throughput.is_measured and self.throughput.spare_capacity(now, entry.until) >= tokens
            ):
                yield request, entry.waiting

    def _charge(self, part: Part, lead: int) -> None:
        """Charge a request for its inputs in the batch of `lead`."""
        entry = self._requests[part.request]
        self._turns.charge(part.request, part.tokens, lead)
        entry.at_engine += len(part.indexes)
        if not entry.waiting:
            self._stop_waiting(part.request)
        elif entry.until is not None and not self.throughput.is_measured:
            self._rest(part.request)

    def _hold(self, entry: _Request, less: Usage, more: Usage) -> None:
        entry.usage = entry.usage.minus(less).plus(more)
        self._usage.change(entry.client.name, less, more)

    def _wait(self, request: int) -> None:
        """Let the request take turns."""
        entry = self._requests[request]
        self._turns.arrive(request, entry.client, entry.weight, entry.waiting.tokens)

    def _is_busy_for(self, request: int, now: float) -> bool:
        """Whether the engine's current work leaves too little time for the request."""
        entry = self._requests[request]
        if entry.until is None or not self.throughput.is_measured:
            return False
        return self.throughput.spare_capacity(now, entry.until) < entry.waiting.first()

    def _rest(self, request: int) -> None:
        """Give the request no turn before a batch has ended."""
        self._turns.leave(request)
        self._resting.add(request)

    def _stop_waiting(self, request: int) -> None:
        """The request has no more waiting inputs."""
        self._timed.pop(request, None)
        self._resting.discard(request)
        self._turns.leave(request)
