"""(pure) Recent history of the service for the status page, in steps of a few seconds. Its size is bounded.

Latencies are counted in buckets whose bounds grow by a factor of 1.1, so a quantile is at most 10 % above the
true value.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field

STEP_S = 5.0
STEPS = 120
_WIDER = math.log(1.1)
_SHORTEST_S = 1e-4


@dataclass(frozen=True, slots=True)
class Series:
    """One value for each step of `step_s` seconds, oldest first; the last step is in progress.

    `failed` counts the `requests` that got no scores. `median_s` and `p95_s` are latencies in seconds, None
    if no request was answered. `waiting` is the largest number of documents in the queue, `memory_bytes` the
    largest memory of the engines, both None if they were not sampled; `lost` counts the engines that exited
    unexpectedly.
    """

    step_s: float
    requests: tuple[int, ...]
    failed: tuple[int, ...]
    documents: tuple[int, ...]
    median_s: tuple[float | None, ...]
    p95_s: tuple[float | None, ...]
    waiting: tuple[int | None, ...]
    memory_bytes: tuple[int | None, ...]
    lost: tuple[int, ...]


@dataclass(slots=True)
class _Step:
    number: int
    requests: int = 0
    failed: int = 0
    documents: int = 0
    waiting: int | None = None
    memory_bytes: int | None = None
    lost: int = 0
    buckets: Counter[int] = field(default_factory=Counter)

    def quantile(self, share: float) -> float | None:
        left = math.ceil(share * self.buckets.total())
        for number in sorted(self.buckets):
            left -= self.buckets[number]
            if left <= 0:
                return math.exp(number * _WIDER)
        return None


class RecentHistory:
    """Keeps `steps` steps of `step_s` seconds. `now` is in seconds of one monotonic clock."""

    def __init__(self, step_s: float = STEP_S, steps: int = STEPS) -> None:
        self._step_s = step_s
        self._most = steps
        self._steps: deque[_Step] = deque(maxlen=steps)
        self._lost = 0

    def ended(self, now: float, seconds: float, *, failed: bool) -> None:
        """A request was answered after `seconds`."""
        step = self._at(now)
        step.requests += 1
        step.failed += failed
        step.buckets[math.ceil(math.log(max(seconds, _SHORTEST_S)) / _WIDER)] += 1

    def scored(self, now: float, documents: int) -> None:
        """This many documents were scored."""
        self._at(now).documents += documents

    def sampled(self, now: float, *, waiting: int, memory_bytes: int, lost: int) -> None:
        """The state of all models at this moment. `lost` counts from the start of the service."""
        step = self._at(now)
        step.waiting = max(waiting, step.waiting or 0)
        step.memory_bytes = max(memory_bytes, step.memory_bytes or 0)
        step.lost += max(lost - self._lost, 0)
        self._lost = lost

    def read(self, now: float) -> Series:
        """All steps until now; steps without requests are zero."""
        last = int(now // self._step_s)
        kept = {step.number: step for step in self._steps}
        steps = [kept.get(number, _Step(number)) for number in range(last - self._most + 1, last + 1)]
        return Series(
            self._step_s,
            requests=tuple(step.requests for step in steps),
            failed=tuple(step.failed for step in steps),
            documents=tuple(step.documents for step in steps),
            median_s=tuple(step.quantile(0.5) for step in steps),
            p95_s=tuple(step.quantile(0.95) for step in steps),
            waiting=tuple(step.waiting for step in steps),
            memory_bytes=tuple(step.memory_bytes for step in steps),
            lost=tuple(step.lost for step in steps),
        )

    def _at(self, now: float) -> _Step:
        number = int(now // self._step_s)
        if not self._steps or self._steps[-1].number < number:
            self._steps.append(_Step(number))
        return self._steps[-1]
