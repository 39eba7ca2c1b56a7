"""(pure) The restart delay after an engine failed, and the state and log message during the delay.

The delay doubles from 0.2 s to 60 s. Restarts never stop, because the cause may pass: a file system is
mounted again, another process frees memory. One answered request resets the delay. A quiet minute does not,
because an engine that crashes on every request looks healthy in between.
"""

from __future__ import annotations

import logging

from rerankd.errors import EngineStartFailed, RerankdError
from rerankd.process.states import Failed, Waiting

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 60.0
# Requests wait for a restart within this time. Otherwise they are rejected with the time of the restart.
PATIENCE_S = 5.0
# The delay is shortened by up to this share, so that services that lost a shared disk do not restart at the
# same moment.
JITTER = 0.2


def delay_s(losses: int, chance: float = 0.0) -> float:
    """Return the delay in seconds after `losses` (at least 1) engines in a row that answered no request.
    `chance` is a random number in [0, 1)."""
    doublings = min(losses - 1, 16)  # a float overflows beyond 2**1023
    return min(FIRST_DELAY_S * 2.0**doublings, LONGEST_DELAY_S) * (1 - JITTER * chance)


def state(
    name: str, error: RerankdError, losses: int, delay_s: float, until: float, loaded: bool
) -> tuple[Waiting | Failed, int, str]:
    """Return the engine's state during a delay of `delay_s` seconds, which ends at `until`, with the log
    level and the log message. `error` is the last of `losses` in a row. `loaded`: the model `name` has been
    ready before."""
    if not loaded:  # the caller that waits for the first load reports the error
        text = f"{error.message}\nrerankd retries in {delay_s:.3g} s."
        return Failed(error, until), logging.WARNING if losses > 1 else logging.INFO, text
    if delay_s > PATIENCE_S:
        error = EngineStartFailed(
            f"{error.message}\nThe engine is restarted in {delay_s:.0f} s, and then at least once a minute "
            f"until it answers. To restart it now: rerankd reload {name}"
        )
        return Failed(error, until), logging.ERROR, error.message
    text = f"{error.message}\nThe engine is restarted in {delay_s:.3g} s."
    return Waiting(error, until), logging.WARNING, text
