"""Score the rows of a file of pairs, part by part."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from rerankd.bulk.parts import Parts, disk_errors
from rerankd.bulk.rows import Chunk, Columns, Group, Pair, Scored, groups
from rerankd.bulk.table import Format
from rerankd.domain import RerankRequest
from rerankd.errors import BulkError, InvalidRequest
from rerankd.progress import Progress
from rerankd.rerank_result import RerankResult
from rerankd.service import Reranker
from rerankd.serving.prepare_model import Model

# Rows that are read ahead of the oldest one without a score: enough for the largest batches of all engines.
# If they are long, fewer (see Chunk.size).
_ROWS_AHEAD = 2_048
_SIZE_AHEAD = 2**25
# Requests and characters under way, well below the limits of the queue (see config/service_settings.py).
_MOST_REQUESTS = 128
_MOST_CHARACTERS = 8_000_000
# A part has the rows of this time, or fewer. A stop loses no more than them.
_PART_S = 20.0
_PART_ROWS = 20_000
_PART_SIZE = 2**25
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Job:
    """What to score and how. `instruction` is that of rows without one."""

    source: Path
    format: Format
    columns: Columns
    raw_scores: bool = False
    instruction: str | None = None


@dataclass(slots=True)
class Report:
    """What a job did. `earlier` rows were done before it began; `rows` include them. `failed` and `truncated`
    rows are those of this run; `examples` are the first errors."""

    rows: int = 0
    earlier: int = 0
    failed: int = 0
    truncated: int = 0
    seconds: float = 0.0
    examples: list[str] = field(default_factory=list)

    @property
    def has_no_score(self) -> bool:
        """Whether there were rows, and none of them has a score."""
        return self.failed == self.rows > 0

    @property
    def rows_per_s(self) -> float:
        return (self.rows - self.earlier) / self.seconds if self.seconds else 0.0


def check_input(job: Job) -> None:
    """Read the first rows. Raises BulkError if the input can't be scored."""
    _state(job.source)
    next(job.format.chunks(job.source, job.columns, 0), None)


def identity(job: Job, model: Model) -> dict[str, str]:
    """Return everything that the scores depend on, by name. Raises BulkError if the input is no file."""
    return {
        "input": _state(job.source),
        "columns": ", ".join(job.columns.read + job.columns.added),
        "kind of score": "raw" if job.raw_scores else "normalized",
        "instruction": job.instruction or "",
        "model": f"{model.name}, {_digest(model.fingerprint)}",
        "recipe": _digest(repr(model.recipe)),
        "calibration": _calibration(job, model),
        "engine": model.engine.backend.identity(model.engine, ()),
        "version of rerankd": metadata.version("rerankd"),
    }


def _calibration(job: Job, model: Model) -> str:
    """Identifies the calibration of the scores; "" if they have none."""
    found = model.resolution.calibration
    return "" if found is None or job.raw_scores else _digest(repr(found.normalization()))


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
    scorer = _Scorer(job, reranker, report)
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
            async with contextlib.aclosing(scorer.in_order(parts.rows)) as scored:
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


class _Scorer:
    def __init__(self, job: Job, reranker: Reranker, report: Report) -> None:
        self._job, self._reranker, self._report = job, reranker, report
        self._requests, self._characters = 0, 0
        self._changed = asyncio.Condition()

    async def in_order(self, skip: int) -> AsyncGenerator[tuple[Chunk, list[Scored]]]:
        """Yield the chunks with the outcome of each row, in the order of the file."""
        job = self._job
        chunks = job.format.chunks(job.source, job.columns, skip)
        waiting: deque[tuple[Chunk, asyncio.Task[list[Scored]]]] = deque()
        rows, size, has_more = 0, 0, True
        try:
            while True:
                while has_more and rows < _ROWS_AHEAD and size < _SIZE_AHEAD:
                    chunk = await asyncio.to_thread(next, chunks, None)
                    has_more = chunk is not None
                    if chunk is not None:
                        rows, size = rows + len(chunk.pairs), size + chunk.size
                        waiting.append((chunk, asyncio.create_task(self._scored(chunk))))
                if not waiting:
                    return
                chunk, task = waiting.popleft()
                outcomes = await task
                rows, size = rows - len(outcomes), size - chunk.size
                yield chunk, outcomes
        finally:
            for _, task in waiting:
                task.cancel()
            await asyncio.gather(*(task for _, task in waiting), return_exceptions=True)

    async def _scored(self, chunk: Chunk) -> list[Scored]:
        outcomes = [
            Scored(error=row, is_row=False) if isinstance(row, str) else Scored() for row in chunk.pairs
        ]
        try:
            async with asyncio.TaskGroup() as requests:
                for group in groups(chunk.pairs):
                    requests.create_task(self._score(group, chunk.pairs, outcomes))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        failed = [outcome.error for outcome in outcomes if outcome.error is not None]
        self._report.failed += len(failed)
        self._report.examples += failed[: _EXAMPLES - len(self._report.examples)]
        return outcomes

    async def _score(self, group: Group, pairs: Sequence[Pair | str], outcomes: list[Scored]) -> None:
        """Set the outcomes of the rows of a group."""
        try:
            result = await self._answer(group, pairs)
        except InvalidRequest as error:
            if len(group.rows) == 1:
                outcomes[group.rows[0]] = Scored(error=error.message)
                return
            # One row must not make the others fail.
            for row in group.rows:
                pair = pairs[row]
                assert isinstance(pair, Pair)
                alone = Group(group.query, group.instruction, (row,), len(pair.document))
                await self._score(alone, pairs, outcomes)
            return
        self._report.truncated += len(result.truncated)
        reasons = {error.index: f"The document was not scored: {error.reason}." for error in result.errors}
        reasons |= dict.fromkeys(result.blank, "The document is blank.")
        for found in result.results:
            reason = reasons.get(found.index)
            score = found.score if reason is None else None
            outcomes[group.rows[found.index]] = Scored(score, reason)

    async def _answer(self, group: Group, pairs: Sequence[Pair | str]) -> RerankResult:
        documents = tuple(pair.document for row in group.rows if isinstance(pair := pairs[row], Pair))
        request = RerankRequest(
            group.query,
            documents,
            instruction=group.instruction or self._job.instruction,
            raw_scores=self._job.raw_scores,
            budget_ms=0,
            max_scored_documents=0,
        )
        async with self._room(group.characters):
            return await self._reranker.answer(request)

    @contextlib.asynccontextmanager
    async def _room(self, characters: int) -> AsyncIterator[None]:
        """Wait until a request may begin; it has ended when the block ends."""

        def fits() -> bool:
            fits_in = self._characters + characters <= _MOST_CHARACTERS or not self._requests
            return fits_in and self._requests < _MOST_REQUESTS

        async with self._changed:
            await self._changed.wait_for(fits)
            self._requests += 1
            self._characters += characters
        try:
            yield
        finally:
            self._requests -= 1
            self._characters -= characters
            async with self._changed:
                self._changed.notify(2)
