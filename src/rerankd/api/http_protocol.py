"""uvicorn's HTTP/1.1, with limits on connections that are too slow, too many, or malformed.

uvicorn itself closes a connection that is idle after a request, and nothing else: one that never sends its
headers, or never reads its answer, would stay for ever.
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

# A request's line and headers together. nginx takes 32 KiB, too; tokens of single sign-on can have 10 KiB.
MOST_HEADER_BYTES = 2**15
# When a client that has ended its side is asked whether it still reads, in seconds from then and from each
# other.
_PROBES_S = (0.2, 0.05, 0.5, 1.0)
_LATER_PROBES_S = 5.0


class _Connection(h11.Connection):
    """h11's parser, stricter in two things."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            _check(event)
        return event


def _check(event: h11.Request) -> None:
    names = {name for name, _ in event.headers}
    if b"content-length" in names and b"transfer-encoding" in names:
        # RFC 9112, 6.1: a proxy in front may have taken the other one for the end of the body.
        raise h11.RemoteProtocolError(
            "it has both Content-Length and Transfer-Encoding", error_status_hint=400
        )
    size_bytes = len(event.target) + sum(len(name) + len(value) + 4 for name, value in event.headers)
    if size_bytes > MOST_HEADER_BYTES:  # h11 itself only looks while headers are incomplete
        raise h11.RemoteProtocolError("headers too large", error_status_hint=431)


class Protocol(H11Protocol):
    """One connection."""

    settings: Settings
    most_connections: int
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

    # --- a connection begins and ends ---

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.most_connections and not self._close_an_idle_one():
            _log.warning(
                "a connection was refused: %d are open and none is idle. Raise the limit of open files "
                "(ulimit -n), or max_connections.",
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
        """Answer past h11, which may have given the connection up, and close it."""
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
                # Below the mark at which writing pauses, but it may stay unread as well.
                self._send_timer = self.loop.call_later(self.settings.send_timeout_s, self._unread)

    def _watch_headers(self) -> None:
        """The timer runs while headers are awaited: from the beginning of a connection, and from the first
        byte of a later request on. Between requests keep-alive holds."""
        awaits = self.cycle is None or (self.cycle.response_complete and self._idle_since is None)
        if not awaits:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self.settings.header_timeout_s, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """The answer to what is no HTTP request, or one that is refused before the app sees it."""
        if self.cycle is not None and not self.cycle.response_complete and self.cycle.response_started:
            self.transport.close()
            return
        error = sys.exception()  # uvicorn calls this where it has caught it
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        text = f"This is no valid HTTP/1.1 request: {error or msg}."
        if status == 431:
            most = MOST_HEADER_BYTES // 1024
            text = f"The request's headers are larger than {most} KiB. Send fewer or shorter ones."
        body = json.dumps(DEFAULT.render_error(InvalidRequest(text))).encode()
        self._refuse(HTTPStatus(status), "content-type: application/json", body)

    def _should_upgrade(self) -> bool:
        """Never: a request for WebSocket or HTTP/2 is answered as the HTTP/1.1 request that it also is."""
        return False

    # --- answers ---

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
        # All waiting for one answer counts, or a client could read a few bytes now and then.
        self._paused_s += self.loop.time() - self._paused_at
        if self.cycle is None or self.cycle.response_complete:
            self._paused_s = 0.0

    def _unread(self) -> None:
        if self.transport.get_write_buffer_size():
            _log.info(
                "a client did not read its answer for %g s (send_timeout_s)", self.settings.send_timeout_s
            )
            self.transport.abort()

    # --- a client that has ended its side ---

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that has sent its request may end its side and wait for the answer, or it may have hung
        up: both look the same. An interim answer (100, which clients skip) tells: who has hung up answers it
        with a reset, and then the next write fails. HTTP/1.0 has none; its clients, often proxies, count as
        gone."""
        cycle = self.cycle
        is_waited_for = cycle is not None and not cycle.response_complete and not cycle.more_body
        if not is_waited_for or self.scope["http_version"] != "1.1" or self.scheme == "https":
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


def protocol(settings: Settings, most_connections: int) -> type[Any]:
    """The protocol with the limits of the settings, as uvicorn wants it."""
    return type("Protocol", (Protocol,), {"settings": settings, "most_connections": most_connections})
