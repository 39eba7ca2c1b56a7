"""No work for a client that has gone, and an answer for one that is refused."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive

_DISCARD_S = 2.0


async def unless_gone(answer: Coroutine[Any, Any, Response], gone: Coroutine[Any, Any, None]) -> Response:
    """What `answer` returns; the work on it ends when `gone` does."""
    work, hung_up = asyncio.ensure_future(answer), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({work, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        # 499 is nginx' word for it; nobody reads it but the metrics.
        return work.result() if work.done() else Response(status_code=499)
    finally:
        work.cancel()
        hung_up.cancel()
        await asyncio.gather(work, hung_up, return_exceptions=True)


async def discard(receive: Receive, headers: Mapping[str, str], most_bytes: int) -> bool:
    """Read the body of a refused request, for a moment. A connection that is closed with unread bytes is
    reset, and then a client that still sends never sees its answer. Returns whether the body has ended."""
    if "expect" in headers:  # it waits for our word, and then sends nothing
        return False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while most_bytes > 0:
                message = await receive()
                most_bytes -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return True
    return False
