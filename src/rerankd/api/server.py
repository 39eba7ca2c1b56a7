"""The web server: an app on sockets that listen already, until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from rerankd.api.http_protocol import MOST_HEADER_BYTES, protocol
from rerankd.api.listen_address import connections_allowed
from rerankd.config import Settings

_log = logging.getLogger("rerankd.api")

# Connections that are still open when no request is under way any more get so long.
_LAST_WORDS_S = 2
# A client that has connected before a hand-over gets so long for its request.
_FIRST_WORDS_S = 1.0
_LOOK_S = 0.02


class Server(uvicorn.Server):
    """Serves until `end`. Signals are the caller's affair."""

    def __init__(self, app: FastAPI, *, settings: Settings, listening: Callable[[], None]) -> None:
        """`listening` is called when it accepts connections."""
        room = connections_allowed(settings.max_connections)
        super().__init__(
            uvicorn.Config(
                app,
                http=protocol(settings, room.most),
                ws="none",
                h11_max_incomplete_event_size=MOST_HEADER_BYTES,
                backlog=room.backlog,
                access_log=False,  # see origin.Gate
                log_config=None,
                timeout_graceful_shutdown=_LAST_WORDS_S,
            )
        )
        self._listening = listening

    async def hand_over(self) -> None:
        """Leave new connections to whoever else has the sockets. Who has connected and not asked yet gets a
        moment for that; connections end with the answer that is under way on them."""
        for server in self.servers:
            server.close()
        deadline = time.monotonic() + _FIRST_WORDS_S
        while time.monotonic() < deadline and any(one.cycle is None for one in self._connections()):
            await asyncio.sleep(_LOOK_S)
        for one in self._connections():
            one.shutdown()

    def _connections(self) -> list[H11Protocol]:
        return [one for one in self.server_state.connections if isinstance(one, H11Protocol)]

    def end(self, *, at_once: bool = False) -> None:
        """Finish; with `at_once`, without waiting for answers."""
        self.should_exit = True
        self.force_exit = self.force_exit or at_once

    async def say_last_words(self) -> None:
        """Wait for the answers of requests under way, after the engines are gone.

        After a second signal uvicorn does not wait for them: cut off before their 503, they would be 500.
        """
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_WORDS_S)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._listening()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's own raises the signal again when it is done, which would end the process before the engine
        # has been stopped.
        yield
