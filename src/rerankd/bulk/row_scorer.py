"""Score rows of pairs with a Reranker: as many requests at once as fill its engines, and no more."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from rerankd.bulk.rows import Chunk, Group, Pair, Scored, groups
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest
from rerankd.rerank_result import RerankResult
from rerankd.service import Reranker

# Rows that are read ahead of the oldest one without a score: enough for the largest batches of all engines.
# If they are long, fewer (see Chunk.size).
_ROWS_AHEAD = 2_048
_SIZE_AHEAD = 2**25
# Requests and characters under way, well below the limits of the queue (see config/service_settings.py).
_MOST_REQUESTS = 128
_MOST_CHARACTERS = 8_000_000
_EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Kind:
    """Which score a row gets. `instruction` is that of rows without one."""

    raw_scores: bool = False
    instruction: str | None = None


@dataclass(slots=True)
class Counts:
    """How many rows have no score, and how many documents were truncated; `examples` are the first errors."""

    failed: int = 0
    truncated: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, other: Counts) -> None:
        self.failed += other.failed
        self.truncated += other.truncated
        self.examples += other.examples[: _EXAMPLES - len(self.examples)]


class RowScorer:
    """Scores rows with `reranker`, which has been started. Several callers may share it."""

    def __init__(self, reranker: Reranker, kind: Kind) -> None:
        self._reranker, self._kind = reranker, kind
        self._requests, self._characters = 0, 0
        self._changed = asyncio.Condition()

    async def in_order(
        self, chunks: Iterator[Chunk], counts: Counts
    ) -> AsyncGenerator[tuple[Chunk, list[Scored]]]:
        """Yield the chunks with the outcome of each row, in their order. Raises what `score` raises."""
        waiting: deque[tuple[Chunk, asyncio.Task[list[Scored]]]] = deque()
        rows, size, has_more = 0, 0, True
        try:
            while True:
                while has_more and rows < _ROWS_AHEAD and size < _SIZE_AHEAD:
                    chunk = await asyncio.to_thread(next, chunks, None)
                    has_more = chunk is not None
                    if chunk is not None:
                        rows, size = rows + len(chunk.pairs), size + chunk.size
                        waiting.append((chunk, asyncio.create_task(self.score(chunk.pairs, counts))))
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

    async def score(self, pairs: Sequence[Pair | str], counts: Counts) -> list[Scored]:
        """Return the outcome of each row; a row that can't be scored gets the reason. Raises the engine's
        error if it can't score at all."""
        outcomes = [Scored(error=row, is_row=False) if isinstance(row, str) else Scored() for row in pairs]
        try:
            async with asyncio.TaskGroup() as requests:
                for group in groups(pairs):
                    requests.create_task(self._score(group, pairs, outcomes, counts))
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None
        failed = [outcome.error for outcome in outcomes if outcome.error is not None]
        counts.add(Counts(len(failed), examples=failed))
        return outcomes

    async def _score(
        self, group: Group, pairs: Sequence[Pair | str], outcomes: list[Scored], counts: Counts
    ) -> None:
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
                await self._score(alone, pairs, outcomes, counts)
            return
        counts.truncated += len(result.truncated)
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
            instruction=group.instruction or self._kind.instruction,
            raw_scores=self._kind.raw_scores,
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
