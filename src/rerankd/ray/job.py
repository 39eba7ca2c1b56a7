"""`rerankd ray score`: score files of pairs with the engines of a cluster.

    OUT/_job.json                    what the scores depend on
    OUT/part-000017-002000.jsonl     slice 17 of the input with its scores, 2,000 rows
    OUT/_SUCCESS                     the job is complete

Each part is written as a whole by the actor that scores it, so no text passes through this process or Ray's
object store, and the parts are the rows that are done. A slice that is scored twice, because a node was lost,
replaces its own part. Readers of such folders leave out names that begin with "_" (Ray, Spark, pyarrow).
"""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import ray
import ray.data

from rerankd.bulk.job import Report
from rerankd.bulk.parts import check_same
from rerankd.errors import BulkError, EngineUnavailable, RerankdError
from rerankd.progress import Progress, step
from rerankd.ray import storage
from rerankd.ray.part_scorer import PartScorer, Work, Written, identity
from rerankd.ray.pool import Pool, Wanted, pool
from rerankd.ray.slices import Slice
from rerankd.ray.storage import File

_JOB, _SUCCESS = "_job.json", "_SUCCESS"
_PART = re.compile(r"part-(\d{6,})-(\d{6,})\.\w+", re.ASCII)
# Slices that an actor scores at once: the requests of the next one fill the engine while one ends.
_SLICES_AT_ONCE = 2
_READERS = 16


@dataclass(frozen=True, slots=True)
class Input:
    """The slices of the input, and what changes with it."""

    slices: Sequence[Slice]
    identity: Mapping[str, str]


class Output:
    """The folder of the parts. `done` are their numbers of rows, by the number of the part."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.done: dict[int, int] = {}

    def check_new(self) -> None:
        """Raise BulkError if the output is complete, or holds something else."""
        names = self._names()
        if _SUCCESS in names:
            raise BulkError(f"{self.url} is complete. Remove it, or name another folder.")
        if names and _JOB not in names:
            raise BulkError(f"{self.url} exists. Remove it, or name another folder.")

    def begin(self, job: Mapping[str, str], *, restart: bool) -> None:
        """Find the parts that are done, or, with `restart`, remove them. Raises BulkError if they belong to a
        job that differs, and OutputFailed."""
        system, path = storage.opened(self.url)
        if restart:
            with storage.writing(self.url):
                for name in self._names():
                    system.rm(storage.inside(path, name))
        names = self._names()
        with storage.writing(self.url):
            for name in names:
                if name.endswith(".new"):
                    system.rm(storage.inside(path, name))
        parts = [found for name in names if (found := _PART.fullmatch(name))]
        if parts and _JOB in names:
            record = storage.inside(self.url, _JOB)
            check_same(job, storage.read_whole(record), record, self.url)
        else:
            self._write(_JOB, json.dumps(job, indent=2).encode())
        self.done = {int(part[1]): int(part[2]) for part in parts}

    def finish(self) -> None:
        """Mark the output as complete. Raises OutputFailed."""
        self._write(_SUCCESS, b"")

    def _names(self) -> list[str]:
        system, path = storage.opened(self.url)
        with storage.reading(self.url):
            if not system.exists(path):
                return []
            if not system.isdir(path):
                raise BulkError(f"{self.url} is a file. Name a folder for the parts of the output.")
            return [Path(name).name for name in system.ls(path, detail=False)]

    def _write(self, name: str, data: bytes) -> None:
        system, path = storage.opened(self.url)
        with storage.writing(self.url):
            system.makedirs(path, exist_ok=True)
            system.pipe_file(storage.inside(path, name), data)


def read_input(work: Work, url: str, files: Sequence[File], rows: int, progress: Progress) -> Input:
    """Cut the files into slices of about `rows` rows. Raises BulkError if they can't be scored."""
    slices: list[Slice] = []
    with ThreadPoolExecutor(_READERS) as readers:
        found = readers.map(lambda file: work.source.cut(file, work.columns, rows), files)
        for at, cut in enumerate(found):
            progress(f"reading {url}", at, len(files))
            slices += cut
    progress(f"reading {url}", len(files), len(files))
    if not slices:
        raise BulkError("The input has no rows.")
    state = hashlib.sha256(repr(files).encode(errors="replace")).hexdigest()[:16]
    return Input(
        slices,
        {
            "input": f"{url}, {state}",
            "rows of a part": str(rows),
            "columns": ", ".join(work.columns.read + work.columns.added),
        },
    )


def run(
    work: Work, given: Input, output: Output, wanted: Wanted, progress: Progress, *, restart: bool
) -> Report:
    """Score the slices that have no part yet, on the cluster that this process is connected to.

    A row that can't be scored gets the reason. Raises BulkError if the input can't be read or changes
    meanwhile, OutputFailed, and the errors of the model and its engine; parts that were written are kept.
    """
    actors = pool(ray.nodes(), wanted)
    if actors.threads is not None and "threads" not in work.settings:
        work = replace(work, settings={**work.settings, "threads": actors.threads})
    with step(progress, "preparing the model on a node"):
        work = replace(work, identity=_identity(work, actors))
    output.begin({**given.identity, **work.identity}, restart=restart)
    report = Report(rows=sum(output.done.values()), earlier=sum(output.done.values()))
    left = [number for number in range(len(given.slices)) if number not in output.done]
    sizes = [one.last - one.first for one in given.slices]
    done, total = sum(sizes) - sum(sizes[number] for number in left), sum(sizes)
    began = time.monotonic()
    what = "scoring on the cluster"
    for written in _written(work, given, left, actors):
        report.rows += written.rows
        report.add(written.counts)
        report.seconds = time.monotonic() - began
        done += sizes[written.number]
        progress(what, report.rows, max(round(report.rows * total / done), report.rows))
    if not report.rows:
        raise BulkError("The input has no rows.")
    output.finish()
    return report


def _identity(work: Work, actors: Pool) -> Mapping[str, str]:
    """What the scores depend on, as a node of the cluster tells it."""
    remote = ray.remote(num_cpus=actors.cpus, num_gpus=actors.gpus)(identity)
    try:
        found = ray.get(remote.remote(work))
    except ray.exceptions.RayError as error:
        raise _failed(error) from error
    if isinstance(found, RerankdError):
        raise found
    return dict(found)


def _written(work: Work, given: Input, numbers: Sequence[int], actors: Pool) -> Iterator[Written]:
    """Score slices, and yield each as soon as its part is written."""
    if not numbers:
        return
    rows = [{"number": number, "slice": pickle.dumps(given.slices[number])} for number in numbers]
    _be_quiet()
    count = min(actors.actors, len(rows))
    outcomes = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        PartScorer,
        fn_constructor_args=(work,),
        compute=ray.data.ActorPoolStrategy(
            size=count, max_concurrent_calls_per_actor=_SLICES_AT_ONCE, enable_true_multi_threading=True
        ),
        num_cpus=actors.cpus,
        num_gpus=actors.gpus,
    )
    try:
        for row in outcomes.iter_rows():
            outcome = pickle.loads(row["outcome"])
            if isinstance(outcome, RerankdError):
                raise outcome
            yield outcome
    except ray.exceptions.RayError as error:
        raise _failed(error) from error


def _failed(error: Exception) -> RerankdError:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return EngineUnavailable(
        f"The cluster could not go on: {lines[-1].rstrip('.')}. The parts that are written are kept; run the "
        "command again to go on."
    )


def _be_quiet() -> None:
    """Progress and errors are shown by the command."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
