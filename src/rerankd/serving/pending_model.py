"""A model that is not served yet: it is being downloaded or read, or it was refused.

    starting -(read)-> served              starting -(error)-> refused -(time, reload)-> starting

If the cause may pass by itself (a missing file, a failed download), the model is retried without limit, with
a growing delay. If it can't (a file that can't be scored correctly, a duplicate name), the model waits for a
reload.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from dataclasses import dataclass
from typing import Literal

from rerankd.config import EffectiveModelSettings
from rerankd.errors import (
    ConfigError,
    DoesNotFit,
    EngineTooOld,
    ModelPending,
    ModelRefused,
    ModelUnavailable,
    RerankdError,
    Unscorable,
)

Phase = Literal["starting", "refused"]
_LASTING = (ConfigError, DoesNotFit, EngineTooOld, Unscorable)
_LONGEST_DELAY_S = 60.0
# A rate that was measured for a shorter time is too uncertain.
_LEAST_RATE_S = 2.0


def may_pass(error: RerankdError) -> bool:
    """Whether the cause of a refusal may pass without a reload."""
    return not isinstance(error, _LASTING)


def delay_s(failures: int) -> float:
    """Seconds until the next attempt, after this many failures in a row."""
    return min(2.0 ** (failures - 1), _LONGEST_DELAY_S)


def left_s(done: int, total: int, elapsed_s: float) -> float | None:
    """The estimated seconds until a step is done, at its rate so far; None if that is not known."""
    if elapsed_s < _LEAST_RATE_S or not 0 < done <= total:
        return None
    return elapsed_s * (total - done) / done


@dataclass(frozen=True, slots=True)
class State:
    """The state as shown to users, like that of a served model (see process/supervisor.py)."""

    phase: Phase
    error: RerankdError | None
    since: float
    starts: int = 0


class PendingModel:
    """A model as described by the settings, before its file is read.

    `since` and `retry_at` are in seconds of the monotonic clock. `retry_at` None means that only a reload
    retries it.
    """

    def __init__(
        self, wanted: EffectiveModelSettings, names: tuple[str, ...], error: RerankdError | None = None
    ) -> None:
        self.wanted = wanted
        self.names = names
        self.error: RerankdError | None = None
        self.failures = 0
        self.retry_at: float | None = None
        self.is_dropped = False
        self._again = asyncio.Event()
        self.begin()
        if error is not None:
            self.refuse(error)

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def phase(self) -> Phase:
        return "starting" if self.error is None else "refused"

    @property
    def state(self) -> State:
        return State(self.phase, self.error, self.since)

    def begin(self) -> None:
        """Start an attempt to download and read the model."""
        self.error, self.retry_at = None, None
        self.since = time.monotonic()
        self._step = ("", 0, 0, self.since)

    def report(self, what: str, done: int, total: int) -> None:
        """Report the progress of a download; called in its thread. Raises ModelPending, which stops the
        download, if the model is no longer wanted."""
        if self.is_dropped:
            raise ModelPending(f"{self.name} is no longer wanted.")
        before, _, _, began = self._step
        self._step = (what, done, total, began if what == before else time.monotonic())

    def refuse(self, error: RerankdError) -> None:
        """Refuse the model, until the next attempt or a reload."""
        self.error = error
        self.failures += 1
        self.since = time.monotonic()
        self.retry_at = self.since + delay_s(self.failures) if may_pass(error) else None

    def retry(self) -> None:
        """Start the next attempt now."""
        self._again.set()

    async def wait_for_retry(self) -> bool:
        """Wait until the next attempt. Returns whether it was requested by `retry`."""
        left_s = None if self.retry_at is None else max(self.retry_at - time.monotonic(), 0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._again.wait()
        is_requested = self._again.is_set()
        self._again.clear()
        return is_requested

    @property
    def doing(self) -> str:
        """The current step in words; "" before the first report."""
        what, done, total, _ = self._step
        return f"{what}, {done / total:.0%}" if what and total else what

    def left_s(self) -> float | None:
        """The estimated seconds until the current step is done; None if that is not known."""
        _, done, total, began = self._step
        return left_s(done, total, time.monotonic() - began)

    def retry_after_s(self) -> int | None:
        """Seconds after which a request should be retried; None if that is not known."""
        left = self.left_s()
        if self.error is not None:
            left = None if self.retry_at is None else self.retry_at - time.monotonic()
        return None if left is None else max(math.ceil(left), 1)

    def refusal(self) -> RerankdError:
        """The error for a request for this model."""
        wait_s = self.retry_after_s()
        if self.error is None:
            doing = f": {self.doing}" if self.doing else ""
            return ModelPending(
                f"{self.name} is being prepared{doing}. Retry later.", retry_after_s=wait_s or 5
            )
        text = f"{self.name} can't be served: {self.error.message}"
        if wait_s is None:
            return ModelRefused(f"{text} Fix this, then reload rerankd (kill -HUP PID).")
        return ModelUnavailable(f"{text} rerankd retries in {wait_s} s.", retry_after_s=wait_s)
