"""Serving an app on a socket until a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
from collections.abc import Callable, Generator

import uvicorn
from fastapi import FastAPI

from rerankd.errors import AddressInUse


def bind(host: str, port: int) -> socket.socket:
    """A TCP socket on `host`:`port`. Raises AddressInUse where somebody else has it or there is no such
    address.

    It does not listen yet: whoever connects before the engine is ready is refused, and not kept waiting.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"Port {port} on {host} is in use, perhaps by another rerankd. Stop that one, or choose "
                f"another port with --port {port + 1 if port < 65535 else 0}."
            ) from error
        raise AddressInUse(
            f"rerankd can't listen on {host}:{port}: {error.strerror or error}. Choose another --host or "
            "--port."
        ) from error
    return sock


async def serve(app: FastAPI, sock: socket.socket, started: Callable[[], None]) -> None:
    """Serve `app` on `sock` until SIGTERM or SIGINT; a second one ends at once. Calls `started` when it
    listens."""
    chatty = logging.getLogger("uvicorn").isEnabledFor(logging.INFO)
    config = uvicorn.Config(app, access_log=chatty, log_config=None)
    server = _Server(config)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        server.force_exit = server.should_exit
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    server.when_started = started
    await server.serve(sockets=[sock])


class _Server(uvicorn.Server):
    when_started: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self.when_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's own raises the signal again when it is done, which would end the process before the engine
        # has been stopped.
        yield
