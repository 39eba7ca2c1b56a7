"""A lock for the worker's computation, with a counter of forward passes that shows progress."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class ComputeLock:
    """Lets one caller compute at a time, and counts its forward passes. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._is_taken = False
        self._working = 0
        self._steps = 0

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Count the block as work in progress, from before the lock is taken until the results are there."""
        with self._changed:
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock for the block."""
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
        """Count a forward pass."""
        with self._changed:
            self._steps += 1
            self._changed.notify_all()

    def steps(self, after: int, within_s: float) -> int:
        """Return the number of passes, as soon as it exceeds `after`, no work is in progress, or `within_s`
        seconds have passed."""
        with self._changed:
            self._changed.wait_for(lambda: self._steps > after or not self._working, within_s)
            return self._steps
