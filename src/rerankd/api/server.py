"""The web server (uvicorn): graceful shutdown, and hand-over of the sockets to a new process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Generator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from rerankd.api.http_protocol import MOST_HEADER_BYTES, protocol
from rerankd.api.listen_address import connections_allowed
from rerankd.config import Settings

_log = logging.getLogger("rerankd.api")

# Timeout of the shutdown for open connections after the last request is done.
_SHUTDOWN_S = 2
# How long a client that connected before a hand-over has to send its request.
_FIRST_REQUEST_S = 1.0
_POLL_S = 0.02


class Server(uvicorn.Server):
    """Serves an app on listening sockets until `end` is called. The caller handles signals."""

    def __init__(
        self, app: ASGIApp, *, settings: Settings, listening: Callable[[], None], streams: bool = False
    ) -> None:
        """`listening` is called when the server accepts connections. `streams`: see `protocol`."""
        limits = connections_allowed(settings.max_connections)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(settings, limits.most, streams=streams),
                ws="none",
                lifespan="off",  # the caller owns the engines; a second signal would end it with a traceback
                h11_max_incomplete_event_size=MOST_HEADER_BYTES,
                backlog=limits.backlog,
                access_log=False,  # see origin.Gate
                log_config=None,
                timeout_graceful_shutdown=_SHUTDOWN_S,
            )
        )
        self._listening = listening

    async def hand_over(self) -> None:
        """Stop accepting connections, so that another process with the same sockets accepts them.

        Connected clients have _FIRST_REQUEST_S to send a request. Each connection closes after its current
        response.
        """
        for server in self.servers:
            server.close()
        deadline = time.monotonic() + _FIRST_REQUEST_S
        while time.monotonic() < deadline and any(one.cycle is None for one in self._connections()):
            await asyncio.sleep(_POLL_S)
        for one in self._connections():
            one.shutdown()

    def _connections(self) -> list[H11Protocol]:
        return [one for one in self.server_state.connections if isinstance(one, H11Protocol)]

    def end(self, *, at_once: bool = False) -> None:
        """Shut down; with `at_once`, without waiting for running requests."""
        self.should_exit = True
        self.force_exit = self.force_exit or at_once

    async def finish_responses(self) -> None:
        """Wait until running requests have sent their responses, after the engines have stopped.

        After a second signal uvicorn does not wait for them: they would end with 500 instead of 503.
        """
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_SHUTDOWN_S)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's own version raises the signal again at the end, which would end the process before the
        # engine is stopped.
        yield
