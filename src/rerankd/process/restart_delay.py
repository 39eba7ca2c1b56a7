"""(pure) How long to wait before an engine that was lost is started again, and what is told meanwhile.

The delay doubles from 0.2 s to 60 s and never ends: what made the engine fail may pass (a file system that
comes back, memory that others give back). One answered request starts the count over. A quiet minute does
not: an engine that dies at each request would look healthy between two of them.
"""

from __future__ import annotations

import logging

from rerankd.errors import EngineStartFailed, RerankdError
from rerankd.process.states import Failed, Waiting

FIRST_DELAY_S = 0.2
LONGEST_DELAY_S = 60.0
# Requests wait for a start that is this near. For a later one they are told when to come again.
PATIENCE_S = 5.0
# Up to this share is taken off, so that services that lost a shared disk don't all come back at one moment.
JITTER = 0.2


def delay_s(losses: int, chance: float = 0.0) -> float:
    """Seconds to wait after `losses` (at least 1) engines in a row that answered nothing. `chance` is a
    random number in [0, 1)."""
    doublings = min(losses - 1, 16)  # 2**1023 is the last power that a float can hold
    return min(FIRST_DELAY_S * 2.0**doublings, LONGEST_DELAY_S) * (1 - JITTER * chance)


def state(
    name: str, error: RerankdError, losses: int, delay_s: float, until: float, loaded: bool
) -> tuple[Waiting | Failed, int, str]:
    """What an engine is for `delay_s` seconds, until `until`, after `losses` in a row, the last for `error`;
    and what the log says, at which level. `loaded`: the model `name` has been ready before."""
    if not loaded:  # who waits for the first load tells of it
        text = f"{error.message}\nThe next try is in {delay_s:.3g} s."
        return Failed(error, until), logging.WARNING if losses > 1 else logging.INFO, text
    if delay_s > PATIENCE_S:
        error = EngineStartFailed(
            f"{error.message}\nIt is started again in {delay_s:.0f} s, and then at least once a minute until "
            f"it answers. To try at once: rerankd reload {name}"
        )
        return Failed(error, until), logging.ERROR, error.message
    text = f"{error.message}\nIt is started again in {delay_s:.3g} s."
    return Waiting(error, until), logging.WARNING, text
