"""The parts of a job's output: files with consecutive rows, which a stopped job continues after.

    OUT.parts/job.json                    what the scores depend on
    OUT.parts/000000000000-000000020000   rows 0 to 19,999 of the input with their scores

A part appears complete or not at all, so the rows of the parts are the rows that are done, each once.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from rerankd import files, locks
from rerankd.bulk.rows import Columns
from rerankd.bulk.table import Format, Part
from rerankd.errors import BulkError, OutputFailed

_JOB = "job.json"
_PART = re.compile(r"(\d{12,})-(\d{12,})", re.ASCII)


class Parts:
    """The parts of the output `target`. Use it in `held`; `job` is what it was held for."""

    def __init__(self, target: Path, format: Format, columns: Columns) -> None:
        self.target, self.folder = target, target.with_name(f"{target.name}.parts")
        self._format, self._columns = format, columns
        self._paths: list[Path] = []
        self.rows = 0
        self.is_finished = False
        self.job: Mapping[str, str] = {}

    def check_new(self) -> None:
        """Raise BulkError if the output exists, also as a link to nothing."""
        if os.path.lexists(self.target):
            raise BulkError(f"{self.target} exists. Remove it, or name another file.")

    @contextlib.contextmanager
    def held(self, job: Mapping[str, str], *, restart: bool) -> Iterator[None]:
        """Hold the folder, for one job at a time. `rows` is then the number of rows that are done.

        `job` is everything that the scores depend on. Raises BulkError if the output exists, if another job
        is at work, and, unless `restart`, if the parts belong to a job that differs; OutputFailed for a disk
        error.
        """
        self.check_new()
        with disk_errors(self.folder), contextlib.ExitStack() as stack:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(locks.held(self.folder / ".lock"))
            except BlockingIOError:
                raise BulkError(f"Another rerankd score is writing {self.target}.") from None
            self.check_new()  # the other one may have ended just now
            if restart:
                for path in self.folder.iterdir():
                    if path.name != ".lock":
                        path.unlink()
            self._continue(job)
            yield

    def _continue(self, job: Mapping[str, str]) -> None:
        self.job = job
        self._paths = sorted(path for path in self.folder.iterdir() if _PART.fullmatch(path.name))
        record = self.folder / _JOB
        if not record.exists() or not self._paths:
            files.write_whole(record, json.dumps(job, indent=2).encode())
        check_same(job, record.read_bytes(), str(record), str(self.folder))
        for path in self.folder.glob("*.new"):
            path.unlink()
        for path in self._paths:
            first, _, last = path.name.partition("-")
            if int(first) != self.rows:
                raise BulkError(
                    f"{self.folder} has no part with row {self.rows}. Add --restart to begin again."
                )
            self.rows = int(last)

    def add(self, part: Part) -> None:
        """Write the next rows. Raises OSError."""
        last = self.rows + sum(len(outcomes) for _, outcomes in part)
        path = self.folder / f"{self.rows:012}-{last:012}"
        new = path.with_suffix(".new")
        self._format.write(new, self._columns, part)
        with new.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(new, path)
        self._paths.append(path)
        self.rows = last

    def finish(self) -> None:
        """Join the parts to the output, and remove them. Raises BulkError if there are no rows, and
        OutputFailed."""
        with disk_errors(self.folder):
            if not self._paths:
                shutil.rmtree(self.folder)
                raise BulkError("The input has no rows.")
            new = self.folder / f"joined.new{self.target.suffix}"
            self._format.join(self._paths, new)
            os.replace(new, self.target)
            self.is_finished = True
            shutil.rmtree(self.folder)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputFailed(
            f"{folder} can't be written: {error.strerror or error}. Its rows are kept; run the command again "
            "to go on."
        ) from error


def check_same(job: Mapping[str, str], recorded: bytes, record: str, folder: str) -> None:
    """Raise BulkError unless the job is the one whose rows are in `folder`. `recorded` is the content of its
    file `record`."""
    try:
        before = dict(json.loads(recorded))
    except (TypeError, ValueError):
        raise BulkError(f"{record} is damaged. Add --restart to begin again.") from None
    changed = [name for name in {**before, **job} if before.get(name) != job.get(name)]
    if changed:
        raise BulkError(
            f"{folder} holds the rows of an earlier job that differs in: {', '.join(changed)}. "
            "Add --restart to remove them and begin again, or name another output."
        )
