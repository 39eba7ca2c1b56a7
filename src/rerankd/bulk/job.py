"""Score the rows of a file of pairs, part by part."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from rerankd import config
from rerankd.bulk.parts import Parts, disk_errors
from rerankd.bulk.row_scorer import Counts, Kind, RowScorer
from rerankd.bulk.rows import Chunk, Columns, Scored
from rerankd.bulk.table import Format
from rerankd.config import Settings
from rerankd.config.model_settings import DAY_S
from rerankd.errors import BulkError, ConfigError
from rerankd.progress import Progress
from rerankd.service import Reranker
from rerankd.serving.prepare_model import Model

# A part has the rows of this time, or fewer. A stop loses no more than them.
_PART_S = 20.0
_PART_ROWS = 20_000
_PART_SIZE = 2**25


@dataclass(frozen=True, slots=True)
class Job:
    """What to score and how."""

    source: Path
    format: Format
    columns: Columns
    kind: Kind = field(default_factory=Kind)


@dataclass(slots=True)
class Report(Counts):
    """What a job did. `earlier` rows were done before it began; `rows` include them. The counts are those of
    this run."""

    rows: int = 0
    earlier: int = 0
    seconds: float = 0.0

    @property
    def has_no_score(self) -> bool:
        """Whether there were rows, and none of them has a score."""
        return self.failed == self.rows > 0

    @property
    def rows_per_s(self) -> float:
        return (self.rows - self.earlier) / self.seconds if self.seconds else 0.0


def settings_for_pairs(settings: Settings) -> Settings:
    """Return the settings with which pairs are scored. Raises ConfigError for a cascade."""
    if (cascade := settings.first_cascade) is not None:
        raise ConfigError(
            f"{cascade.name} is a cascade, which ranks all documents of a query; the score of a pair is that "
            f"of one model. Name it, for example --model {cascade.stages[-1].model}"
        )
    # A row waits for as long as its engine needs.
    return config.override(settings, {"request_timeout_s": DAY_S})


def check_input(job: Job) -> None:
    """Read the first rows. Raises BulkError if the input can't be scored."""
    _state(job.source)
    next(job.format.chunks(job.source, job.columns, 0), None)


def identity(job: Job, model: Model) -> dict[str, str]:
    """Return everything that the output depends on, by name. Raises BulkError if the input is no file."""
    return {
        "input": _state(job.source),
        "columns": ", ".join(job.columns.read + job.columns.added),
        **identity_of_scores(job.kind, model),
    }


def identity_of_scores(kind: Kind, model: Model) -> dict[str, str]:
    """Return everything that the score of a pair depends on, by name."""
    return {
        "kind of score": "raw" if kind.raw_scores else "normalized",
        "instruction": kind.instruction or "",
        "model": f"{model.name}, {_digest(model.fingerprint)}",
        "recipe": _digest(repr(model.recipe)),
        "calibration": _calibration(kind, model),
        "engine": model.engine.backend.identity(model.engine, ()),
        "version of rerankd": metadata.version("rerankd"),
    }


def _calibration(kind: Kind, model: Model) -> str:
    """Identifies the calibration of the scores; "" if they have none."""
    found = model.resolution.calibration
    return "" if found is None or kind.raw_scores else _digest(repr(found.normalization()))


def _state(source: Path) -> str:
    """What changes with the content of a file. Raises BulkError if it is no file."""
    if not source.is_file():
        raise BulkError(f"{source} does not exist, or is not a file.")
    now = source.stat()
    return f"{source.name}, {now.st_size} bytes, changed at {now.st_mtime_ns}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]


async def run(job: Job, reranker: Reranker, parts: Parts, progress: Progress) -> Report:
    """Score the rows after those of `parts`, and add them; `reranker` has been started, and `parts` is held.

    A row that can't be scored gets the reason. Raises BulkError if the input can't be read or changes
    meanwhile, OutputFailed, and the engine's error; rows that were scored before that, or before a
    cancellation, are kept.
    """
    report = Report(rows=parts.rows, earlier=parts.rows)
    began = time.monotonic()
    chunks = job.format.chunks(job.source, job.columns, parts.rows)
    part: list[tuple[Chunk, Sequence[Scored]]] = []
    size, since = 0, began

    async def write() -> None:
        nonlocal size, since
        rows, part[:] = tuple(part), []
        size, since = 0, time.monotonic()
        if rows:
            if _state(job.source) != parts.job["input"]:
                raise BulkError(
                    f"{job.source} has changed since it was opened. Leave it as it is while it is scored, "
                    "and begin again with --restart."
                )
            await _to_its_end(parts.add, rows)

    what = f"scoring {job.source.name}"
    with disk_errors(parts.folder):
        try:
            async with contextlib.aclosing(RowScorer(reranker, job.kind).in_order(chunks, report)) as scored:
                async for chunk, outcomes in scored:
                    part.append((chunk, outcomes))
                    size += chunk.size
                    report.rows += len(outcomes)
                    report.seconds = time.monotonic() - began
                    progress(what, report.rows, max(round(report.rows / chunk.read), report.rows))
                    is_full = report.rows - parts.rows >= _PART_ROWS or size >= _PART_SIZE
                    if is_full or time.monotonic() - since >= _PART_S:
                        await write()
        finally:
            await write()
    return report


async def finish(parts: Parts) -> None:
    """See Parts.finish, which ends also after a cancellation: the output is then complete."""
    await _to_its_end(parts.finish)


async def _to_its_end(act: Callable[..., None], *arguments: object) -> None:
    """Call it in a thread. A cancellation comes after it."""
    acting = asyncio.create_task(asyncio.to_thread(act, *arguments))
    try:
        await asyncio.shield(acting)
    except asyncio.CancelledError:
        await acting
        raise
