"""(pure) Which of the waiting texts go through the model together next.

A call holds up to 1,024 tokens in bf16, padding included, of texts of about one length: there is nothing to
gain beyond (15 pairs/s of BERT-large's shape with 512 to 1,024 tokens a call, 11.6 one by one, 5.9 in one
padded batch of 64; AMX), and what has just come has to wait for no more than that. In f32 it holds 512: there
a call gains nothing from its size (2,700 tokens/s of MiniLM's shape in calls of 130 as of 1,040; AVX2). So
calls of a quarter of that or more have a power of two of texts, which keeps shapes few (see shapes.py).

The owners of jobs take turns (a job is a call of the service, its owner the question it is about: a
request's calls have one in common). The one whose last turn is longest ago is next, and who has just come
counts as served now, but before the one that really was: it waits for the call under way, and for one of each
owner that waits already. Its first two turns come together, so that ten documents, which are three or four
calls, wait for two of a bulk request and not for three. The owner whose turn it is gives its longest text;
its own texts of nearly that length go along, then those of others, for whom it is no turn.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rerankd.backends.openvino import shapes

TOKENS_A_CALL: Mapping[str, int] = {"bf16": 1024, "f32": 512}
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

    def __init__(self, tokens_a_call: int) -> None:
        self._most = tokens_a_call
        self._jobs: dict[int, _Job] = {}
        self._owners: dict[Hashable, _Owner] = {}
        self._turn = 0

    def add(self, job: int, lengths: Sequence[int], owner: Hashable = None) -> None:
        """A job has come, with texts of so many tokens, at least one each. Without an owner it is its own."""
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
        waiting = sum(_fitting(job, longest) for job in self._jobs.values())
        room = shapes.whole(min(room, waiting), longest, self._most // 4)
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


def _fitting(job: _Job, longest: int) -> int:
    """How many of the job's texts have nearly `longest` tokens and no more."""
    start, end = _span(job, longest)
    return end - start


def _span(job: _Job, longest: int) -> tuple[int, int]:
    end = bisect_right(job.rows, longest, key=lambda row: row.tokens)
    return bisect_left(job.rows, longest * _NEARLY, key=lambda row: row.tokens), end


def _take(job: _Job, longest: int, most: int) -> list[Row]:
    """The job's longest texts, up to `most` of them, of nearly `longest` tokens and no more."""
    start, end = _span(job, longest)
    start = max(start, end - most)
    taken = job.rows[start:end]
    del job.rows[start:end]
    return taken
