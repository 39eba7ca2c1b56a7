"""A minimal HTTP/1.1 client for a child's UNIX socket, with keep-alive connections.

A request of 1,000 documents makes 250 engine calls, so the cost of a call matters. Parsing is done by
httptools (llhttp, in C). Engines do not need what httpx adds: redirects, cookies, proxies, decoding. On one
machine, a request of 1,000 documents took 678 ms of CPU time with httpx and 138 ms with this client (whole
requests, with an engine that answers at once; bench/hotpath.py).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httptools


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    body: bytes

    def json(self) -> Any:
        """The body's value. Raises ValueError."""
        return json.loads(self.body)


class Connections:
    """A connection pool for one socket.

    Raises OSError if the engine can't be reached, disconnects, or does not speak HTTP. A cancelled call
    closes its connection, so the engine notices.
    """

    def __init__(self, socket: Path) -> None:
        self._socket = str(socket)
        self._idle: list[_Connection] = []
        self._open: set[_Connection] = set()
        self.is_closed = False

    async def get(self, path: str) -> Answer:
        return await self._call(b"GET %s HTTP/1.1\r\nHost: engine\r\n\r\n" % path.encode())

    async def post(self, path: str, body: bytes, content_type: str = "application/json") -> Answer:
        head = (
            f"POST {path} HTTP/1.1\r\nHost: engine\r\n"
            f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return await self._call(head.encode() + body)

    def close(self) -> None:
        """Close all connections; running calls fail."""
        self.is_closed = True
        for connection in tuple(self._open):
            connection.abort()

    async def _call(self, request: bytes) -> Answer:
        lost: ConnectionError | None = None
        while True:
            if self.is_closed:
                raise ConnectionAbortedError("closed")
            reused = self._take_idle()
            try:
                connection = reused or await self._connect()
            except OSError as error:
                # Report the lost connection: an engine that crashed on the request differs from a missing
                # one.
                raise lost or error from None
            try:
                answer = await connection.ask(request)
            except ConnectionError as error:
                # The engine may close an idle connection just as it is used again.
                if reused is None or connection.has_answered:
                    raise
                lost = error
                continue
            except BaseException:
                connection.abort()
                raise
            if connection.is_reusable:
                self._idle.append(connection)
            else:
                connection.abort()
            return answer

    def _take_idle(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection in self._open:
                return connection
        return None

    async def _connect(self) -> _Connection:
        _, connection = await asyncio.get_running_loop().create_unix_connection(
            lambda: _Connection(self._open), self._socket
        )
        if self.is_closed:
            connection.abort()
        return connection


class _Connection(asyncio.Protocol):
    """One connection; it is in `open_ones` while it is open. `has_answered`: the engine has sent part of the
    response to the current call. `is_reusable`: another call may follow."""

    def __init__(self, open_ones: set[_Connection]) -> None:
        self._open_ones = open_ones
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        self._parts: list[bytes] = []
        self.has_answered = False
        self.is_reusable = False

    async def ask(self, request: bytes) -> Answer:
        """Send a request and wait for the response. Raises ConnectionError if the connection closes first."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the connection was closed")
        self.has_answered = self.is_reusable = False
        self._parts = []
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # It is writable. uvloop's class differs but has the same methods.
        self._transport = cast(asyncio.Transport, transport)
        self._open_ones.add(self)

    def data_received(self, data: bytes) -> None:
        self.has_answered = True
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(ConnectionError(f"not HTTP: {error}"))
            self.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._open_ones.discard(self)
        self._fail(ConnectionResetError("the connection was closed"))

    def _fail(self, error: ConnectionError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)

    # Callbacks of the parser.

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)

    def on_message_complete(self) -> None:
        self.is_reusable = self._parser.should_keep_alive()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(Answer(self._parser.get_status_code(), b"".join(self._parts)))
