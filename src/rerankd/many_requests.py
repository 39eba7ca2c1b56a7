"""Answer many requests at once: each gets its own result or error."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from rerankd.client import ANONYMOUS, Client
from rerankd.domain import RerankRequest
from rerankd.errors import RerankdError
from rerankd.rerank_result import RerankResult
from rerankd.service import Reranker
from rerankd.serving import request_checks

# Enough short requests to fill the batches of an engine, and far below the queue's limit of requests.
_MOST_AT_ONCE = 32

Outcome = RerankResult | RerankdError


async def answer_each(
    reranker: Reranker,
    requests: Sequence[RerankRequest],
    *,
    timeout_s: float | None = None,
    client: Client = ANONYMOUS,
    done: Callable[[RerankRequest], None] = lambda request: None,
) -> list[Outcome]:
    """Return the result of each request, or its error, in order; `done` is called after each.

    The requests share one deadline, and their time budgets begin together. They go through the queue of their
    models like those of any client, at most `_MOST_AT_ONCE` of them at a time. Raises InvalidRequest if
    together they have more documents than one request may have.
    """
    request_checks.check_count(sum(len(request.documents) for request in requests), reranker.settings)
    since = time.monotonic()
    ends = since + min(timeout_s or math.inf, reranker.settings.request_timeout_s)
    turns = asyncio.Semaphore(_MOST_AT_ONCE)

    async def answer(request: RerankRequest) -> Outcome:
        async with turns:
            left_s = max(ends - time.monotonic(), 1e-3)  # a request that is too late gets the usual error
            try:
                return await reranker.answer(request, timeout_s=left_s, client=client, since=since)
            except RerankdError as error:
                return error
            finally:
                done(request)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(answer(request)) for request in requests]
    return [task.result() for task in tasks]
