"""A model that is to be served and can't be asked yet: it is fetched or read now, or it was refused.

    starting -(read)-> served              starting -(error)-> refused -(time, reload)-> starting

A refusal that may pass by itself (a missing file, a failed download) is tried again for ever, with a growing
delay. One that can't (a file that no right score can come of, a clash of names) waits for a reload.
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
# A rate that was measured for a shorter time tells little.
_LEAST_RATE_S = 2.0


def may_pass(error: RerankdError) -> bool:
    """Whether what refused a model may be gone at the next try, without anybody telling rerankd."""
    return not isinstance(error, _LASTING)


def delay_s(failures: int) -> float:
    """Seconds until the next try, after this many failed ones in a row."""
    return min(2.0 ** (failures - 1), _LONGEST_DELAY_S)


def left_s(done: int, total: int, elapsed_s: float) -> float | None:
    """Seconds that a step still takes at the rate it had so far; None where that can't be told."""
    if elapsed_s < _LEAST_RATE_S or not 0 < done <= total:
        return None
    return elapsed_s * (total - done) / done


@dataclass(frozen=True, slots=True)
class State:
    """What is told of it, as of a served model (see process/supervisor.py)."""

    phase: Phase
    error: RerankdError | None
    since: float
    starts: int = 0


class PendingModel:
    """One model by what the settings say of it, since there is no file to ask yet.

    `since` and `retry_at` are of the monotonic clock; `retry_at` None: only a reload has it tried again.
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
        """It is being fetched and read."""
        self.error, self.retry_at = None, None
        self.since = time.monotonic()
        self._step = ("", 0, 0, self.since)

    def report(self, what: str, done: int, total: int) -> None:
        """Progress of the fetch, from its own thread. Raises where nobody wants the model any more."""
        if self.is_dropped:
            raise ModelPending(f"{self.name} is not wanted any more.")
        before, _, _, began = self._step
        self._step = (what, done, total, began if what == before else time.monotonic())

    def refuse(self, error: RerankdError) -> None:
        """It can't be served, for now or until a reload."""
        self.error = error
        self.failures += 1
        self.since = time.monotonic()
        self.retry_at = self.since + delay_s(self.failures) if may_pass(error) else None

    def retry(self) -> None:
        """Have it tried again at once."""
        self._again.set()

    async def wait_for_retry(self) -> bool:
        """Wait until it is to be tried again. Returns whether somebody asked for that."""
        left_s = None if self.retry_at is None else max(self.retry_at - time.monotonic(), 0.0)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(left_s):
                await self._again.wait()
        asked = self._again.is_set()
        self._again.clear()
        return asked

    @property
    def doing(self) -> str:
        """What is being done to it, in words; "" before the first word of it."""
        what, done, total, _ = self._step
        return f"{what}, {done / total:.0%}" if what and total else what

    def left_s(self) -> float | None:
        """Seconds that what is being done still takes; None where that can't be told."""
        _, done, total, began = self._step
        return left_s(done, total, time.monotonic() - began)

    def retry_after_s(self) -> int | None:
        """Seconds after which asking again may help; None where that can't be told."""
        left = self.left_s()
        if self.error is not None:
            left = None if self.retry_at is None else self.retry_at - time.monotonic()
        return None if left is None else max(math.ceil(left), 1)

    def refusal(self) -> RerankdError:
        """What who asks for the model is told."""
        wait_s = self.retry_after_s()
        if self.error is None:
            doing = f": {self.doing}" if self.doing else ""
            return ModelPending(
                f"{self.name} is being made ready{doing}. Try again.", retry_after_s=wait_s or 5
            )
        text = f"{self.name} can't be served: {self.error.message}"
        if wait_s is None:
            return ModelRefused(f"{text} After that is put right, have rerankd reload (kill -HUP PID).")
        return ModelUnavailable(f"{text} It is tried again in {wait_s} s.", retry_after_s=wait_s)
