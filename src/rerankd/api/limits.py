"""Limits per request: body timeout, memory of bodies and responses, cancellation when the client disconnects.

Each request runs in a `guard`. It reads the body before a deadline and within the client's share of memory
(see memory_shares.py), and it watches the connection (see disconnect.py), so that the requests of a
disconnected client leave the queue. Limits per connection are in http_protocol.py.
"""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

from rerankd.api import traces
from rerankd.api.auth import key_of
from rerankd.api.client import identify
from rerankd.api.disconnect import discard, unless_disconnected
from rerankd.api.memory_shares import SMALL_BYTES, Hold, Shares
from rerankd.errors import BodyTimeout, InvalidRequest, Overloaded, UnsupportedMediaType
from rerankd.service import Reranker

TIMEOUT_HEADER = "x-request-timeout"
# Bodies are decompressed, and responses sent, in pieces of this size.
PIECE_BYTES = 2**16
# How long a body waits for memory before the request fails with 429 and Retry-After.
_LONGEST_WAIT_S = 10.0

Answer = Callable[[Request], Coroutine[Any, Any, Response]]


def wanted_timeout_s(request: Request) -> float | None:
    """Return the timeout in seconds that the client sets in a header. Raises InvalidRequest if it is
    invalid."""
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(
            f"The header {TIMEOUT_HEADER} is {text[:40]!r}, but must be a number of seconds, such as 2.5."
        )
    return seconds


def reranker_in(request: Request) -> Reranker | None:
    """Return the reranker of the request's app, or None if the app has none."""
    reranker = getattr(request.app.state, "rerankd", None)
    return reranker if isinstance(reranker, Reranker) else None


def guard(answer: Answer) -> Answer:
    """Wrap a handler: apply the limits of the app's Reranker and count the request in its metrics."""

    async def guarded(request: Request) -> Response:
        reranker = reranker_in(request)
        if reranker is None:
            return await answer(request)
        started = time.perf_counter()
        key = key_of(request, reranker.keys)
        client = identify(request, key, reranker.settings)
        body = _Body(request, reranker, client=client.name)
        inner = Request(request.scope, body.receive)
        inner.state.rerankd_body = body
        inner.state.key = key.name if key else ""
        inner.state.client = client
        try:
            with traces.collected(request) as trace:
                response = await unless_disconnected(answer(inner), body.wait_disconnected())
        finally:
            body.release()
        if body.is_begun and not body.is_read:
            # The rest of the body would be parsed as the next request.
            response.headers["connection"] = "close"
            if response.status_code != 408:
                await body.discard()
        dialect = getattr(inner.state, "dialect", None)
        if dialect is not None:
            reranker.metrics.ended(
                dialect,
                response.status_code,
                time.perf_counter() - started,
                model=getattr(inner.state, "model", ""),
                key=inner.state.key,
            )
            traces.send(trace, inner, response)
        return body.counted(response)

    return guarded


def parsed(request: Request) -> None:
    """Release the memory of the request's raw body: the parsed texts are counted in the queue."""
    body = getattr(request.state, "rerankd_body", None)
    if isinstance(body, _Body):
        body.release()


def _shares(request: Request, reranker: Reranker) -> Shares:
    """Return the memory shares of the request's app."""
    state = request.app.state
    if not hasattr(state, "rerankd_shares"):
        loop = asyncio.get_running_loop()
        state.rerankd_shares = Shares(0, loop.time, reranker.metrics.held_bytes.set)
    shares: Shares = state.rerankd_shares
    shares.most_bytes = reranker.settings.max_queue_bytes
    return shares


class _Body:
    """The body of one request while it is received, and its response while it is sent."""

    def __init__(self, request: Request, reranker: Reranker, *, client: str) -> None:
        self._settings = reranker.settings
        self._shares = _shares(request, reranker)
        self._now = asyncio.get_running_loop().time
        self._receive: Receive = request.receive
        self._headers = request.headers
        self._deadline = self._now() + self._settings.body_timeout_s
        self._hold = Hold(client, self._deadline)
        self._size_bytes = 0
        self._read = asyncio.Event()
        self._next: Receive = self._raw
        self._is_sized = self._declared_bytes() > 0
        self.is_begun = False

    @property
    def is_read(self) -> bool:
        return self._read.is_set()

    async def receive(self) -> Message:
        """Receive the next message; decompress the body if it is compressed.

        Raises BodyTimeout, Overloaded if too much memory is in use, UnsupportedMediaType for an unknown
        content encoding, and InvalidRequest for damaged data.
        """
        if not self.is_begun:
            self.is_begun = True
            encoding = self._headers.get("content-encoding", "").strip().lower()
            if encoding in ("gzip", "x-gzip"):
                self._next, self._is_sized = gunzip(self._raw), False
            elif encoding in ("", "identity"):
                await self._take(min(self._declared_bytes(), self._settings.max_body_bytes))
            else:
                raise UnsupportedMediaType(
                    f"The content encoding {encoding[:40]!r} is not supported. Send the body uncompressed, "
                    "or with 'Content-Encoding: gzip'."
                )
        message = await self._next()
        if message["type"] == "http.request":
            self._size_bytes += len(message.get("body", b""))
            await self._take(self._size_bytes)
        return message

    async def _raw(self) -> Message:
        if self.is_read:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise BodyTimeout(
                f"The request body was not received within {self._settings.body_timeout_s:g} s. Send it "
                "faster, send fewer documents per request, or raise body_timeout_s."
            ) from None
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._read.set()
        return message

    def _declared_bytes(self) -> int:
        declared = self._headers.get("content-length", "")
        return int(declared) if declared.isdecimal() else 0

    async def _take(self, size_bytes: int) -> None:
        """Hold `size_bytes` in total. A body of unknown size counts as the largest allowed one; otherwise two
        such bodies could wait for each other."""
        if size_bytes > SMALL_BYTES and not self._is_sized:
            size_bytes = max(size_bytes, self._settings.max_body_bytes)
        more_bytes = size_bytes - self._hold.size_bytes
        if more_bytes <= 0:
            return
        asked = self._now()
        longest_s = min(self._settings.body_timeout_s, _LONGEST_WAIT_S)
        if not await self._shares.take(self._hold, more_bytes, longest_s):
            wait_s = self._shares.retry_after_s(self._hold, more_bytes)
            raise Overloaded(
                f"Request and response bodies use {self._shares.size_bytes / 2**20:.0f} MiB, and no memory "
                f"became free for this request within {longest_s:g} s. Send fewer large requests at a time. "
                f"Retry in {wait_s} s.",
                retry_after_s=wait_s,
            )
        self._deadline += self._now() - asked  # the wait for memory does not count against the client
        self._hold.until = self._deadline

    async def discard(self) -> None:
        """Read the rest of a rejected body (see disconnect.discard)."""
        if await discard(self._receive, self._headers, self._settings.max_body_bytes):
            self._read.set()

    def release(self) -> None:
        """Release the memory of the body."""
        self._shares.release(self._hold)

    def counted(self, response: Response) -> Response:
        """Return the response, whose body counts as memory in use until it is sent."""
        body = getattr(response, "body", b"")  # a streaming response has none
        if len(body) <= PIECE_BYTES:
            return response
        self._hold.until = self._now() + self._settings.send_timeout_s
        self._shares.grow(self._hold, len(body))
        return _Sending(response, self.release)

    async def wait_disconnected(self) -> None:
        """Wait until the client disconnects after it has sent its body."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Sending(Response):
    """Sends a large response in pieces; each piece waits until the client has taken the previous one."""

    def __init__(self, response: Response, sent: Callable[[], None]) -> None:
        self._response = response
        self._sent = sent
        self.status_code = response.status_code
        self.raw_headers = response.raw_headers
        self.background = response.background

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def in_pieces(message: Message) -> None:
            if message["type"] != "http.response.body":
                return await send(message)
            body = memoryview(message["body"])
            for at in range(0, len(body), PIECE_BYTES):
                more = at + PIECE_BYTES < len(body)
                await send({**message, "body": bytes(body[at : at + PIECE_BYTES]), "more_body": more})

        try:
            await self._response(scope, receive, in_pieces)
        finally:
            self._sent()


def gunzip(receive: Receive) -> Receive:
    """Decompress the messages of a gzip body in pieces of at most PIECE_BYTES.

    Raises InvalidRequest for invalid gzip data. The caller limits the total size.
    """
    unpack = zlib.decompressobj(wbits=31)
    packed, is_last = b"", False

    async def unpacked() -> Message:
        nonlocal unpack, packed, is_last
        while True:
            if not packed and not is_last:
                message = await receive()
                if message["type"] != "http.request":
                    return message
                packed, is_last = message.get("body", b""), not message.get("more_body", False)
            elif unpack.eof and not packed:
                return await receive()  # the whole body was delivered
            try:
                piece = unpack.decompress(packed, PIECE_BYTES)
            except zlib.error as error:
                raise InvalidRequest(f"The request body is not valid gzip: {error}.") from None
            packed = unpack.unconsumed_tail
            if unpack.eof and unpack.unused_data:  # a gzip file can have several members
                packed, unpack = unpack.unused_data, zlib.decompressobj(wbits=31)
            is_done = is_last and not packed and len(piece) < PIECE_BYTES
            if is_done and not unpack.eof:
                raise InvalidRequest("The request body is not valid gzip: it ends too early.")
            if piece or is_done:
                return {"type": "http.request", "body": piece, "more_body": not is_done}

    return unpacked
