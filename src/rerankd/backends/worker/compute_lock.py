"""Who computes: one caller after the other, in steps that can be watched."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class ComputeLock:
    """The right to compute. To be used from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_taken = False
        self._steps = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Wait for the turn, and have it until the block ends."""
        with self._changed:
            self._changed.wait_for(lambda: not self._is_taken)
            self._is_taken = True
        try:
            yield
        finally:
            with self._changed:
                self._is_taken = False
                self._changed.notify_all()

    def step(self) -> None:
        """Something was computed."""
        with self._changed:
            self._steps += 1
            self._changed.notify_all()

    def steps(self, after: int, within_s: float) -> int:
        """How many steps were taken, as soon as they are more than `after`, nobody computes, or the time is
        over."""
        with self._changed:
            self._changed.wait_for(lambda: self._steps > after or not self._is_taken, within_s)
            return self._steps
