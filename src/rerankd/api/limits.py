"""What a client may cost: time for headers and bodies, memory for JSON, and no work once it has gone.

Each request runs in a `guard`: it reads the body under a deadline and within what all bodies may hold
together, and it watches the connection, so that a client that hangs up frees its place in the queue.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from starlette.types import Message, Receive
from uvicorn.protocols.http.h11_impl import H11Protocol

from rerankd.api.auth import key_name
from rerankd.errors import BodyTimeout, InvalidRequest, Overloaded
from rerankd.service import Reranker

TIMEOUT_HEADER = "x-request-timeout"
# A value in JSON takes up to 64 bytes when read, for the 2 that it may have as text: 32 MiB of "[[],[],…"
# would take 700 MB. So many values take 64 MB; ten thousand documents with a hundred fields have as many.
_MOST_VALUES = 1_000_000
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"', re.DOTALL)

Answer = Callable[[Request], Coroutine[Any, Any, Response]]


def wanted_timeout_s(request: Request) -> float | None:
    """The deadline that the client names, in seconds. Raises InvalidRequest for what is no time."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(f"The header {TIMEOUT_HEADER} is {text[:40]!r}, but must be seconds, like 2.5.")
    return seconds


def check_structure(data: bytes | bytearray) -> None:
    """Raise InvalidRequest for JSON of so many values that reading them would take far more memory than the
    text has."""
    if _values(data) > _MOST_VALUES and _values(_STRING.sub(b"", data)) > _MOST_VALUES:
        raise InvalidRequest(
            f"The request body holds more than {_MOST_VALUES} JSON values. Send fewer documents at a time."
        )


def _values(data: bytes | bytearray) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def reranker_in(request: Request) -> Reranker | None:
    """The reranker of the request's app; None where the app was built without one."""
    reranker = getattr(request.app.state, "rerankd", None)
    return reranker if isinstance(reranker, Reranker) else None


def guard(answer: Answer) -> Answer:
    """`answer` within the limits of the Reranker of the request's app, and counted in its metrics."""

    async def guarded(request: Request) -> Response:
        reranker = reranker_in(request)
        if reranker is None:
            return await answer(request)
        started = time.perf_counter()
        body = _Body(request, reranker)
        inner = Request(request.scope, body.receive)
        work = asyncio.ensure_future(answer(inner))
        gone = asyncio.ensure_future(body.wait_gone())
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            # 499 is nginx' word for it; nobody reads it but the metrics.
            response = work.result() if work.done() else Response(status_code=499)
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)
            body.release()
        if body.is_begun and not body.is_read:
            # What is left of the body would be taken for the next request.
            response.headers["connection"] = "close"
        dialect = getattr(inner.state, "dialect", None)
        if dialect is not None:
            reranker.metrics.ended(
                dialect,
                response.status_code,
                time.perf_counter() - started,
                model=getattr(inner.state, "model", ""),
                key=key_name(request, reranker.keys) or "",
            )
        return response

    return guarded


class _Reading:
    """Bytes of all bodies of an app that are being read."""

    def __init__(self) -> None:
        self.size_bytes = 0


class _Body:
    """One request's body on its way in."""

    def __init__(self, request: Request, reranker: Reranker) -> None:
        if not hasattr(request.app.state, "rerankd_reading"):
            request.app.state.rerankd_reading = _Reading()
        self._all: _Reading = request.app.state.rerankd_reading
        self._receive: Receive = request.receive
        self._most_bytes = reranker.settings.max_queue_bytes
        self._timeout_s = reranker.settings.body_timeout_s
        self._deadline = asyncio.get_running_loop().time() + self._timeout_s
        self._size_bytes = 0
        self._read = asyncio.Event()
        self.is_begun = False

    @property
    def is_read(self) -> bool:
        return self._read.is_set()

    async def receive(self) -> Message:
        """The next message. Raises BodyTimeout, and Overloaded where all bodies together are too large."""
        self.is_begun = True
        if self.is_read:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise BodyTimeout(
                f"The request body did not come within {self._timeout_s:g} s. Send it faster or in parts, or "
                "raise body_timeout_s."
            ) from None
        if message["type"] == "http.request":
            self._take(len(message.get("body", b"")))
            if not message.get("more_body", False):
                self._read.set()
        return message

    def _take(self, size_bytes: int) -> None:
        if self._all.size_bytes + size_bytes > max(self._most_bytes, size_bytes):
            raise Overloaded(
                f"rerankd is reading {self._all.size_bytes / 2**20:.0f} MiB of other requests; try again."
            )
        self._size_bytes += size_bytes
        self._all.size_bytes += size_bytes

    def release(self) -> None:
        """The body is not kept any more."""
        self._all.size_bytes -= self._size_bytes
        self._size_bytes = 0

    async def wait_gone(self) -> None:
        """Wait until the client has hung up after it has sent its body."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class TimedProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, that closes a connection on which a request's headers take too long.

    uvicorn itself only closes one that is idle after a request: one that never sends any, or sends a byte now
    and then, would stay for ever.
    """

    header_timeout_s = 10.0
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop_timer()

    def _look(self) -> None:
        """The timer runs while a request is awaited, from its first byte or none on."""
        awaits = self.cycle is None or self.cycle.response_complete
        if not awaits:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.header_timeout_s, self._too_slow)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.close()


def protocol(header_timeout_s: float) -> type[Any]:
    """The protocol with this time-out."""
    return type("TimedProtocol", (TimedProtocol,), {"header_timeout_s": header_timeout_s})
