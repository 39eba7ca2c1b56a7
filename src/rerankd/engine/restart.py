"""(pure) What to do when a child has ended: a history of ends and the time -> Restart or GiveUp.

The waits double from 0.2 s to 30 s. A child that was ready for a minute before it died has proven itself: the
count starts over. The fifth quick death in a row is the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 30.0
STABLE_AFTER_S = 60.0
MOST_QUICK_DEATHS = 5


@dataclass(frozen=True, slots=True)
class End:
    """One end of a child: how long it had been ready before (0 when it never was)."""

    ready_for_s: float


@dataclass(frozen=True, slots=True)
class Restart:
    """Start again after so many seconds."""

    after_s: float


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Don't start again by yourself."""


def decide(ends: Sequence[End], stable_after_s: float = STABLE_AFTER_S) -> Restart | GiveUp:
    """What to do after the last of `ends`, oldest first."""
    quick = len(recent(ends, stable_after_s))
    if quick >= MOST_QUICK_DEATHS:
        return GiveUp()
    return Restart(min(FIRST_WAIT_S * 2 ** max(quick - 1, 0), LONGEST_WAIT_S))


def recent(ends: Sequence[End], stable_after_s: float = STABLE_AFTER_S) -> Sequence[End]:
    """The ends that still count: those after the last one of a child that had proven itself."""
    for at in range(len(ends) - 1, -1, -1):
        if ends[at].ready_for_s >= stable_after_s:
            return ends[at + 1 :]
    return ends
