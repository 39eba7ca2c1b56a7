"""The steps of one request in the queue, for its trace: its wait, and each batch with inputs of it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from rerankd import tracing
from rerankd.serving.scheduler import NextBatch


@dataclass(slots=True)
class _AtEngine:
    """A batch at an engine: since when, its size, and how many of its inputs are the request's."""

    begun: float
    given: NextBatch
    own: int = 0


@dataclass(slots=True)
class QueueSteps:
    """Records the steps in a trace. Times are those of the queue's clock."""

    _trace: tracing.Trace
    _waits_since: float | None = None
    _batches: dict[Hashable, _AtEngine] = field(default_factory=dict)

    def enqueued(self, now: float) -> None:
        """Inputs are in the queue, and none of them is at an engine."""
        self._waits_since = now

    def begin(self, batch: Hashable, given: NextBatch, now: float) -> None:
        """One input of the request is in a batch that an engine gets now."""
        self._end_wait(now)
        self._batches.setdefault(batch, _AtEngine(now, given)).own += 1

    def end(self, batch: Hashable, now: float) -> None:
        """The batch has ended, or the request waits for it no longer. Called again, it does nothing."""
        if (one := self._batches.pop(batch, None)) is not None:
            size, tokens = len(one.given.inputs), one.given.tokens
            self._trace.add("score", one.begun, now, inputs=one.own, batch_inputs=size, batch_tokens=tokens)

    def finish(self, now: float) -> None:
        """The request waits for nothing more."""
        self._end_wait(now)
        for batch in tuple(self._batches):
            self.end(batch, now)

    def _end_wait(self, now: float) -> None:
        if self._waits_since is not None:
            self._trace.add("queue", self._waits_since, now)
            self._waits_since = None


def current() -> QueueSteps | None:
    """The steps of this task's request, or None if no trace of it is collected."""
    trace = tracing.current()
    return None if trace is None else QueueSteps(trace)
