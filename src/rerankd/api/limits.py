"""Limits per request: time and memory for its body and its answer, and no work once its client has gone.

Each request runs in a `guard`: it reads the body under a deadline and within its client's share of the memory
for bodies (see memory_shares.py), and it watches the connection (see disconnect.py), so that a client that
hangs up frees its place in the queue. Limits per connection are in protocol.py."""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from starlette.types import Message, Receive, Scope, Send

from rerankd.api.auth import key_of
from rerankd.api.client import identify
from rerankd.api.disconnect import discard, unless_gone
from rerankd.api.memory_shares import SMALL_BYTES, Hold, Shares
from rerankd.errors import BodyTimeout, InvalidRequest, Overloaded, UnsupportedMediaType
from rerankd.service import Reranker

TIMEOUT_HEADER = "x-request-timeout"
# What is unpacked or sent at a time.
PIECE_BYTES = 2**16
# How long a body waits for room before its client is told when to come again.
_LONGEST_WAIT_S = 10.0

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
        key = key_of(request, reranker.keys)
        client = identify(request, key)
        body = _Body(request, reranker, client=client.name)
        inner = Request(request.scope, body.receive)
        inner.state.rerankd_body = body
        inner.state.key = key.name if key else ""
        inner.state.client = client
        try:
            response = await unless_gone(answer(inner), body.wait_gone())
        finally:
            body.release()
        if body.is_begun and not body.is_read:
            # What is left of the body would be taken for the next request.
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
        return body.counted(response)

    return guarded


def parsed(request: Request) -> None:
    """The bytes of the request's body are not kept any more: what was read from them counts in the queue."""
    body = getattr(request.state, "rerankd_body", None)
    if isinstance(body, _Body):
        body.release()


def _shares(request: Request, reranker: Reranker) -> Shares:
    """What all bodies and answers of the request's app hold."""
    state = request.app.state
    if not hasattr(state, "rerankd_shares"):
        loop = asyncio.get_running_loop()
        state.rerankd_shares = Shares(0, loop.time, reranker.metrics.held_bytes.set)
    shares: Shares = state.rerankd_shares
    shares.most_bytes = reranker.settings.max_queue_bytes
    return shares


class _Body:
    """One request's body on its way in, and its answer on its way out."""

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
        """The next message, unpacked where the body is compressed.

        Raises BodyTimeout, Overloaded where too much is held already, UnsupportedMediaType for an encoding
        that is not read, and InvalidRequest for a damaged one.
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
                    f"The request body has the encoding {encoding[:40]!r}. Send it as it is, or with "
                    "'Content-Encoding: gzip'."
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
                f"The request body did not come within {self._settings.body_timeout_s:g} s. Send it faster "
                "or in parts, or raise body_timeout_s."
            ) from None
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._read.set()
        return message

    def _declared_bytes(self) -> int:
        declared = self._headers.get("content-length", "")
        return int(declared) if declared.isdecimal() else 0

    async def _take(self, size_bytes: int) -> None:
        """Hold `size_bytes` in all. A body of unknown size counts as the largest one allowed, or two of
        them could wait for each other."""
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
                f"rerankd holds {self._shares.size_bytes / 2**20:.0f} MiB of requests and answers, and this "
                f"one found no room for {longest_s:g} s. Send fewer large requests at a time; try "
                f"again in {wait_s} s.",
                retry_after_s=wait_s,
            )
        self._deadline += self._now() - asked  # waiting for others is not the client's time
        self._hold.until = self._deadline

    async def discard(self) -> None:
        """Read what is left of a refused body, for a moment."""
        if await discard(self._receive, self._headers, self._settings.max_body_bytes):
            self._read.set()

    def release(self) -> None:
        """The body is not kept any more."""
        self._shares.release(self._hold)

    def counted(self, response: Response) -> Response:
        """The response, whose body counts until it is sent."""
        body = getattr(response, "body", b"")  # one that streams has none
        if len(body) <= PIECE_BYTES:
            return response
        self._hold.until = self._now() + self._settings.send_timeout_s
        self._shares.grow(self._hold, len(body))
        return _Sending(response, self.release)

    async def wait_gone(self) -> None:
        """Wait until the client has hung up after it has sent its body."""
        await self._read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


class _Sending(Response):
    """A large answer on its way: in pieces, each when the one before has been taken."""

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
    """The messages of a body that is packed by gzip, unpacked in pieces of bounded size.

    Raises InvalidRequest for what is not gzip. How large it gets is for the caller to bound.
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
                return await receive()  # all of it was given out
            try:
                piece = unpack.decompress(packed, PIECE_BYTES)
            except zlib.error as error:
                raise InvalidRequest(f"The request body is not valid gzip: {error}.") from None
            packed = unpack.unconsumed_tail
            if unpack.eof and unpack.unused_data:  # a file may have several parts
                packed, unpack = unpack.unused_data, zlib.decompressobj(wbits=31)
            is_done = is_last and not packed and len(piece) < PIECE_BYTES
            if is_done and not unpack.eof:
                raise InvalidRequest("The request body is not valid gzip: it ends too early.")
            if piece or is_done:
                return {"type": "http.request", "body": piece, "more_body": not is_done}

    return unpacked
