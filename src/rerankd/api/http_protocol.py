"""Limits per connection: header, send and keep-alive timeouts, number of connections, malformed requests.

uvicorn itself only closes connections that are idle after a request. A connection that never sends its
headers or never reads its response would stay open forever.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from http import HTTPStatus
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from rerankd.api.dialects.table import DEFAULT
from rerankd.config import Settings
from rerankd.errors import InvalidRequest

_log = logging.getLogger("rerankd.api")

# Request line and headers together. nginx also allows 32 KiB; single sign-on tokens can have 10 KiB.
MOST_HEADER_BYTES = 2**15
# Delays between the probes of a client that has closed its sending side, in seconds (see eof_received).
_PROBES_S = (0.2, 0.05, 0.5, 1.0)
_LATER_PROBES_S = 5.0


class _Connection(h11.Connection):
    """h11's parser with two more checks: body length headers and header size."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            _check(event)
        return event


def _check(event: h11.Request) -> None:
    names = {name for name, _ in event.headers}
    if b"content-length" in names and b"transfer-encoding" in names:
        # RFC 9112, 6.1: a proxy in front may have used the other header to find the end of the body.
        raise h11.RemoteProtocolError(
            "it has both Content-Length and Transfer-Encoding", error_status_hint=400
        )
    size_bytes = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
    if size_bytes > MOST_HEADER_BYTES:  # h11 itself only checks while headers are incomplete
        raise h11.RemoteProtocolError("headers too large", error_status_hint=431)


class Protocol(H11Protocol):
    """One HTTP/1.1 connection."""

    settings: Settings
    most_connections: int
    streams: bool
    _header_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _probe_timer: asyncio.TimerHandle | None = None
    _paused_at = 0.0
    _paused_s = 0.0
    _idle_since: float | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = _Connection(h11.SERVER, MOST_HEADER_BYTES)
        self.timeout_keep_alive = self.settings.keep_alive_s  # type: ignore[assignment]

    # --- connect and disconnect ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections and not self._close_an_idle_one():
            _log.warning(
                "A connection was rejected: %d connections are open and none is idle. Raise the limit of "
                "open files (ulimit -n) or max_connections.",
                self.most_connections,
            )
            self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, "retry-after: 1")
            return
        self._watch_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._header_timer, self._send_timer, self._probe_timer):
            if timer is not None:
                timer.cancel()

    def _close_an_idle_one(self) -> bool:
        idle = [one for one in self.connections if isinstance(one, Protocol) and one._idle_since is not None]
        longest = min(idle, key=lambda one: one._idle_since or 0.0, default=None)
        if longest is not None:
            longest.shutdown()
            self.connections.discard(longest)
        return longest is not None

    def _refuse(self, status: HTTPStatus, header: str, body: bytes = b"") -> None:
        """Write a response without h11, which may be in an error state, and close the connection."""
        lines = f"{header}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(f"HTTP/1.1 {status} {status.phrase}\r\n{lines}".encode() + body)
        self.transport.close()

    # --- requests ---

    def data_received(self, data: bytes) -> None:
        self._idle_since = None
        super().data_received(data)
        self._watch_headers()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        is_idle = self.cycle.response_complete and not self.conn.trailing_data[0]
        self._idle_since = self.loop.time() if is_idle else None
        self._watch_headers()
        if not self.flow.write_paused:
            self._paused_s = 0.0
            if self.transport.get_write_buffer_size():
                # Too little to pause writing, but the client may not read this rest either.
                self._send_timer = self.loop.call_later(self.settings.send_timeout_s, self._unread)

    def _watch_headers(self) -> None:
        """Run the timer while headers are expected: from the start of a connection, and from the first byte
        of each later request. Between requests, the keep-alive timeout applies."""
        awaits = self.cycle is None or (self.cycle.response_complete and self._idle_since is None)
        if not awaits:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.settings.header_timeout_s, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Respond to a malformed request, or to one that is rejected before the app sees it."""
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started:
            self.transport.close()
            return
        error = sys.exception()  # uvicorn calls this in its except block
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        text = f"The request is not valid HTTP/1.1: {error or msg}."
        if status == 431:
            most = MOST_HEADER_BYTES // 1024
            text = f"The request headers are larger than {most} KiB. Send fewer or shorter headers."
        body = json.dumps(DEFAULT.render_error(InvalidRequest(text))).encode()
        self._refuse(HTTPStatus(status), "content-type: application/json", body)

    def _should_upgrade(self) -> bool:
        """Never upgrade to WebSocket or HTTP/2: such a request is also a valid HTTP/1.1 request."""
        return False

    # --- responses ---

    def pause_writing(self) -> None:
        super().pause_writing()
        self._paused_at = self.loop.time()
        if self._send_timer is not None:
            self._send_timer.cancel()
        left_s = max(self.settings.send_timeout_s - self._paused_s, 0.0)
        self._send_timer = self.loop.call_later(left_s, self._unread)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._send_timer is not None:
            self._send_timer.cancel()
        # All pauses of one response add up; otherwise a client could read a few bytes now and then.
        self._paused_s += self.loop.time() - self._paused_at
        if self.cycle is None or self.cycle.response_complete:
            self._paused_s = 0.0

    def _unread(self) -> None:
        if self.transport.get_write_buffer_size():
            _log.info(
                "A client did not read its response for %g s (send_timeout_s).", self.settings.send_timeout_s
            )
            self.transport.abort()

    # --- half-closed connections ---

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Detect whether a client that closed its sending side has disconnected or waits for the response.

        Both look the same to the server. An interim response (100, which clients ignore) makes the
        difference: the machine of a disconnected client replies with a reset, and the next write fails.
        HTTP/1.0 has no interim responses; its clients, often proxies, count as disconnected. So do clients of
        event streams, which have begun and may say nothing for long.
        """
        cycle = self.cycle
        is_waited_for = cycle is not None and not cycle.response_complete and not cycle.more_body
        if self.streams or not is_waited_for or self.scope["http_version"] != "1.1" or self.scheme == "https":
            return None
        cycle.keep_alive = False
        self._probe(0)
        return True

    def _probe(self, number: int) -> None:
        if self.transport.is_closing() or self.cycle.response_started:
            return
        if number:
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        delay_s = _PROBES_S[number] if number < len(_PROBES_S) else _LATER_PROBES_S
        self._probe_timer = self.loop.call_later(delay_s, self._probe, number + 1)


def protocol(settings: Settings, most_connections: int, *, streams: bool) -> type[Any]:
    """Return a Protocol class with these limits; uvicorn creates an instance per connection. `streams`: the
    responses are event streams."""
    own = {"settings": settings, "most_connections": most_connections, "streams": streams}
    return type("Protocol", (Protocol,), own)
