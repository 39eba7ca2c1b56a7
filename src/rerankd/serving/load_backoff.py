"""Delay the next attempt to load a model after a failure."""

from __future__ import annotations

import copy
import math
import random
import time

from rerankd.errors import RerankdError
from rerankd.process import restart_delay

# A failed load takes seconds of CPU time; the machine gets at least as much rest.
_SHORTEST_RETRY_S = 1.0


class Backoff:
    """The last load failure, and the growing delay after it (see process/restart_delay.py). `retry_at` is in
    seconds of the monotonic clock."""

    def __init__(self) -> None:
        self.error: RerankdError | None = None
        self.retry_at = 0.0
        self._failures = 0

    def check(self) -> None:
        """Raise the last failure again until its delay is over."""
        left_s = self.retry_at - time.monotonic()
        if self.error is not None and left_s > 0:
            error = copy.copy(self.error)
            error.retry_after_s = math.ceil(left_s)
            raise error

    def failed(self, error: Exception) -> None:
        """Count a failure. A RerankdError is kept for `check` and gets the delay as `retry_after_s`."""
        self._failures += 1
        delay_s = max(restart_delay.delay_s(self._failures, random.random()), _SHORTEST_RETRY_S)
        self.retry_at = time.monotonic() + delay_s
        if isinstance(error, RerankdError):
            error.retry_after_s = math.ceil(delay_s)
            self.error = error

    def clear(self) -> None:
        """The model was loaded, or an operator has fixed something."""
        self.error, self._failures = None, 0
