"""The steps of one request, with their times, for traces. Recorded only while a trace is collected.

The steps are recorded where they happen; api/traces.py collects them and makes OpenTelemetry spans of them.
While no trace is collected, a step costs the read of a context variable.
"""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

# Waits that are shorter are no steps: nothing was waited for.
SHORTEST_WAIT_S = 0.001

_current: contextvars.ContextVar[Trace | None] = contextvars.ContextVar("trace", default=None)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a request. Times are seconds of time.monotonic()."""

    name: str
    begun: float
    ended: float
    numbers: Mapping[str, int]


@dataclass(slots=True)
class Trace:
    """What is recorded of one request: its steps, and sums of numbers such as its tokens. Holds no texts.
    `onward` returns the headers of a request to another server that belongs to this one."""

    begun: float = field(default_factory=time.monotonic)
    steps: list[Step] = field(default_factory=list)
    numbers: Counter[str] = field(default_factory=Counter)
    onward: Callable[[], Mapping[str, str]] = dict

    def add(self, name: str, begun: float, ended: float, **numbers: int) -> None:
        """Record a step."""
        self.steps.append(Step(name, begun, ended, numbers))


def current() -> Trace | None:
    """The trace of this task's request, or None if none is collected."""
    return _current.get()


@contextlib.contextmanager
def collected() -> Iterator[Trace]:
    """Collect a trace in this block, and in the tasks that it creates."""
    trace = Trace()
    token = _current.set(trace)
    try:
        yield trace
    finally:
        _current.reset(token)


@contextlib.contextmanager
def step(name: str, *, least_s: float = 0.0) -> Iterator[None]:
    """Record the block as a step of the request, if it takes `least_s` or longer."""
    trace = _current.get()
    if trace is None:
        yield
        return
    begun = time.monotonic()
    try:
        yield
    finally:
        ended = time.monotonic()
        if ended - begun >= least_s:
            trace.add(name, begun, ended)


def count(**numbers: int) -> None:
    """Add to the numbers of the request."""
    if (trace := _current.get()) is not None:
        trace.numbers.update(numbers)
