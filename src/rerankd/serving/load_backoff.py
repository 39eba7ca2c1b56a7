"""When a model that could not be loaded may be tried again."""

from __future__ import annotations

import copy
import math
import random
import time

from rerankd.errors import RerankdError
from rerankd.process import restart_delay

# A load that failed takes seconds; the machine is left alone for at least as long.
_SHORTEST_RETRY_S = 1.0


class Backoff:
    """The last failure of a load, and the growing delay after it (see process/restart_delay.py). `retry_at`
    is of the monotonic clock."""

    def __init__(self) -> None:
        self.error: RerankdError | None = None
        self.retry_at = 0.0
        self._failures = 0

    def check(self) -> None:
        """Raise the last failure again while its delay is not over."""
        left_s = self.retry_at - time.monotonic()
        if self.error is not None and left_s > 0:
            error = copy.copy(self.error)
            error.retry_after_s = math.ceil(left_s)
            raise error

    def failed(self, error: Exception) -> None:
        """Count a failure. One that rerankd means is kept, and says when to try again."""
        self._failures += 1
        delay_s = max(restart_delay.delay_s(self._failures, random.random()), _SHORTEST_RETRY_S)
        self.retry_at = time.monotonic() + delay_s
        if isinstance(error, RerankdError):
            error.retry_after_s = math.ceil(delay_s)
            self.error = error

    def clear(self) -> None:
        """It was loaded, or somebody has mended something."""
        self.error, self._failures = None, 0
