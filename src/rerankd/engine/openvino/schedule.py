"""(pure) Which of the waiting texts go through the model together next.

A call holds up to 1,024 tokens, padding included, of texts of about one length: there is nothing to gain
beyond (15 pairs/s of BERT-large's shape with 512 to 1,024 tokens a call, 11.6 one by one, 5.9 in one padded
batch of 64; AMX, bf16), and what has just come has to wait for no more than that.

Jobs (the calls of the service) take turns: the one whose last turn is longest ago is next, and a job that has
just come counts as served now. The job whose turn it is gives its longest text; its own texts of nearly that
length go along, then those of other jobs, for which it is no turn.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

TOKENS_A_CALL = 1024
# A text of at least this share of the longest one's tokens may be padded to it.
_NEARLY = 0.75


class Row(NamedTuple):
    """One text: the job's number, its place there, and its tokens. Rows compare by tokens first."""

    tokens: int
    job: int
    at: int


@dataclass(slots=True)
class _Job:
    served: int
    rows: list[Row] = field(default_factory=list)


class Schedule:
    """What waits. Its methods are the events; a job is a number that the caller makes up."""

    def __init__(self, tokens_a_call: int = TOKENS_A_CALL) -> None:
        self._most = tokens_a_call
        self._jobs: dict[int, _Job] = {}
        self._turn = 0

    def add(self, job: int, lengths: Sequence[int]) -> None:
        """A job has come, with texts of so many tokens, at least one each."""
        rows = sorted(Row(tokens, job, at) for at, tokens in enumerate(lengths))
        if rows:
            self._jobs[job] = _Job(self._turn, rows)

    def drop(self, job: int) -> None:
        """Nothing of the job is wanted any more."""
        self._jobs.pop(job, None)

    def next(self) -> list[Row]:
        """The texts of the next call, which wait no longer; none where nothing waits."""
        if not self._jobs:
            return []
        number, first = min(self._jobs.items(), key=lambda item: (item[1].served, item[0]))
        self._turn += 1
        first.served = self._turn
        longest = first.rows[-1].tokens
        room = max(self._most // longest, 1)
        call: list[Row] = []
        for job in (first, *(job for other, job in self._jobs.items() if other != number)):
            call += _take(job, longest, room - len(call))
            if len(call) == room:
                break
        self._jobs = {number: job for number, job in self._jobs.items() if job.rows}
        return call


def _take(job: _Job, longest: int, most: int) -> list[Row]:
    """The job's longest texts, up to `most` of them, of nearly `longest` tokens and no more."""
    end = bisect_right(job.rows, longest, key=lambda row: row.tokens)
    start = max(bisect_left(job.rows, longest * _NEARLY, key=lambda row: row.tokens), end - most)
    taken = job.rows[start:end]
    del job.rows[start:end]
    return taken
