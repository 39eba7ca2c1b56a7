"""Client disconnects: cancel the work on the request, and read the body of a rejected request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from typing import Any

from fastapi import Response
from starlette.types import Receive

_DISCARD_S = 2.0


async def unless_disconnected(
    answer: Coroutine[Any, Any, Response], disconnect: Coroutine[Any, Any, None]
) -> Response:
    """Return the response of `answer`; cancel it when `disconnect` returns: the client has disconnected."""
    work, disconnected = asyncio.ensure_future(answer), asyncio.ensure_future(disconnect)
    try:
        await asyncio.wait({work, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        # nginx uses 499 for a client that disconnected; only the metrics see it.
        return work.result() if work.done() else Response(status_code=499)
    finally:
        work.cancel()
        disconnected.cancel()
        await asyncio.gather(work, disconnected, return_exceptions=True)


async def discard(receive: Receive, headers: Mapping[str, str], most_bytes: int) -> bool:
    """Read the rest of a rejected request's body, at most `most_bytes` and for at most 2 s.

    A connection that is closed with unread bytes is reset, and a client that is still sending never sees the
    response. Returns whether the end of the body was reached.
    """
    if "expect" in headers:  # the client waits for a 100 response and has not sent the body
        return False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            while most_bytes > 0:
                message = await receive()
                most_bytes -= len(message.get("body", b""))
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return True
    return False
