"""(pure) Which of the waiting texts go through the model together next.

A call holds up to a number of tokens, padding included, of texts of about one length: what has just come has
to wait for no more than that.

The owners of jobs take turns (a job is a call of the service, its owner the question it is about: a
request's calls have one in common). The one whose last turn is longest ago is next, and who has just come
counts as served now, but before the one that really was: it waits for the call under way, and for one of each
owner that waits already. Its first two turns come together, so that ten documents, which are three or four
calls, wait for two of a bulk request and not for three. The owner whose turn it is gives its longest text;
its own texts of nearly that length go along, then those of others, for whom it is no turn.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

Whole = Callable[[int, int], int]
"""(number of texts, tokens of the longest) -> how many of them go into one call."""


def as_they_come(count: int, longest: int) -> int:
    """All of the texts go into one call."""
    return count


_FIRST_TURNS = 2
# A text of at least this share of the longest one's tokens may be padded to it.
_NEARLY = 0.75


class Row(NamedTuple):
    """One text: the job's number, its place there, and its tokens. Rows compare by tokens first."""

    tokens: int
    job: int
    at: int


@dataclass(slots=True)
class _Job:
    owner: Hashable
    rows: list[Row]


@dataclass(slots=True)
class _Owner:
    """`last` is the turn that counts as the last one, and whether it was really had; `turns` how many
    were."""

    last: tuple[int, bool]
    turns: int = 0


class Schedule:
    """What waits. Its methods are the events; a job is a number that the caller makes up."""

    def __init__(self, tokens_a_call: int, whole: Whole = as_they_come) -> None:
        self._most = tokens_a_call
        self._whole = whole
        self._jobs: dict[int, _Job] = {}
        self._owners: dict[Hashable, _Owner] = {}
        self._turn = 0

    def add(self, job: int, lengths: Sequence[int], owner: Hashable = None) -> None:
        """Add a job by the tokens of each of its texts, at least one each. Without an owner it is its own."""
        rows = sorted(Row(tokens, job, at) for at, tokens in enumerate(lengths))
        if rows:
            owner = job if owner is None else owner
            self._jobs[job] = _Job(owner, rows)
            self._owners.setdefault(owner, _Owner((self._turn, False)))

    def drop(self, job: int) -> None:
        """Nothing of the job is wanted any more."""
        self._jobs.pop(job, None)
        self._forget()

    def next(self) -> list[Row]:
        """The texts of the next call, which wait no longer; none where nothing waits."""
        if not self._jobs:
            return []
        owner, served = min(self._owners.items(), key=lambda item: item[1].last)
        self._turn += 1
        served.turns += 1
        if served.turns >= _FIRST_TURNS:
            served.last = (self._turn, True)
        own = [job for job in self._jobs.values() if job.owner == owner]
        longest = max(job.rows[-1].tokens for job in own)
        room = max(self._most // longest, 1)
        waiting = sum(len(_fitting(job, longest)) for job in self._jobs.values())
        room = self._whole(min(room, waiting), longest)
        call: list[Row] = []
        for job in (*own, *(job for job in self._jobs.values() if job.owner != owner)):
            call += _take(job, longest, room - len(call))
            if len(call) == room:
                break
        self._jobs = {number: job for number, job in self._jobs.items() if job.rows}
        self._forget()
        return call

    def _forget(self) -> None:
        """Owners who have nothing waiting."""
        waiting = {job.owner for job in self._jobs.values()}
        self._owners = {owner: served for owner, served in self._owners.items() if owner in waiting}


def _fitting(job: _Job, longest: int) -> range:
    """The places of the job's texts that have nearly `longest` tokens and no more."""
    start = bisect_left(job.rows, longest * _NEARLY, key=lambda row: row.tokens)
    return range(start, bisect_right(job.rows, longest, key=lambda row: row.tokens))


def _take(job: _Job, longest: int, most: int) -> list[Row]:
    """The job's longest texts, up to `most` (at least 1) of them, of nearly `longest` tokens and no more."""
    places = _fitting(job, longest)[-most:]
    taken = job.rows[places.start : places.stop]
    del job.rows[places.start : places.stop]
    return taken
