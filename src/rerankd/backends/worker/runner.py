"""The one thread that runs the model, and the texts that wait for it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.worker.schedule import Row, Schedule, Whole, as_they_come
from rerankd.formats.tokenizer import Reading

Integers = NDArray[np.int64]
Forward = Callable[[Integers, Integers, Integers], NDArray[np.float32]]
"""Ids [texts, tokens], padded with 0, the texts' lengths, and where the second token type begins in each -> a
row of values for each text."""


@dataclass(eq=False)
class Job:
    """Texts that were handed in together. `result` becomes their rows, in order."""

    texts: Sequence[Reading]
    number: int
    result: Future[NDArray[np.float32]] = field(default_factory=Future)
    rows: list[NDArray[np.float32] | None] = field(default_factory=list)
    missing: int = 0


class Runner:
    """Runs `forward` on what is handed in, from any thread, as the schedule has it."""

    def __init__(self, forward: Forward, tokens_a_call: int, whole: Whole = as_they_come) -> None:
        self._forward = forward
        self._schedule = Schedule(tokens_a_call, whole)
        self._jobs: dict[int, Job] = {}
        self._numbers = itertools.count()
        self._steps = 0
        self._changed = threading.Condition()
        threading.Thread(target=self._run, name="compute", daemon=True).start()

    def __len__(self) -> int:
        """Jobs that are under way or wait."""
        return len(self._jobs)

    def submit(self, texts: Sequence[Reading], owner: Hashable = None) -> Job:
        """Hand in texts, at least one, each of at least one token; `owner` is who takes turns with others."""
        job = Job(texts, next(self._numbers), rows=[None] * len(texts), missing=len(texts))
        with self._changed:
            self._jobs[job.number] = job
            self._schedule.add(job.number, [len(text.ids) for text in texts], owner)
            self._changed.notify_all()
        return job

    def drop(self, job: Job) -> None:
        """Nobody waits for the job any more."""
        with self._changed:
            self._jobs.pop(job.number, None)
            self._schedule.drop(job.number)

    def steps(self, after: int, within_s: float) -> int:
        """How many steps the thread has taken, as soon as it is more than `after` or the time is over. It
        takes one at once where there is nothing to do."""
        with self._changed:
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._steps > after, within_s)
            return self._steps

    def _run(self) -> None:
        while True:
            with self._changed:
                call = self._schedule.next()
                if not call:
                    self._changed.wait(1.0)
                self._steps += 1
                self._changed.notify_all()
                texts = [self._jobs[row.job].texts[row.at] for row in call]
            if call:
                self._step(call, texts)

    def _step(self, call: list[Row], texts: list[Reading]) -> None:
        try:
            values = self._forward(*padded(texts))
        except Exception as error:  # the crash boundary of this thread: a library raises what it likes
            self._fail(call, error)
            return
        with self._changed:
            for row, value in zip(call, values, strict=True):
                job = self._jobs.get(row.job)
                if job is None:
                    continue
                job.rows[row.at] = value
                job.missing -= 1
                if not job.missing:
                    del self._jobs[row.job]
                    job.result.set_result(np.stack([found for found in job.rows if found is not None]))

    def _fail(self, call: list[Row], error: Exception) -> None:
        with self._changed:
            for number in {row.job for row in call}:
                self._schedule.drop(number)
                job = self._jobs.pop(number, None)
                if job is not None:
                    job.result.set_exception(error)


def padded(texts: Sequence[Reading]) -> tuple[Integers, Integers, Integers]:
    """What `Forward` takes."""
    lengths = np.array([len(text.ids) for text in texts], np.int64)
    ids = np.zeros((len(texts), int(lengths.max())), np.int64)
    for row, text in zip(ids, texts, strict=True):
        row[: len(text.ids)] = text.ids
    return ids, lengths, np.array([text.second for text in texts], np.int64)
