"""Serving an app on a socket until a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import uvicorn
from fastapi import FastAPI

from rerankd.api.limits import protocol
from rerankd.config import Settings
from rerankd.errors import RerankdError
from rerankd.service import Reranker

_log = logging.getLogger("rerankd.api")

# Connections that are still open when no request is under way any more get so long.
_LAST_WORDS_S = 2


async def serve(
    app: FastAPI,
    sock: socket.socket,
    started: Callable[[], None],
    reranker: Reranker,
    reread: Callable[[], Settings],
) -> None:
    """Serve `app` on `sock` until SIGTERM or SIGINT, and then finish what is under way; a second one ends at
    once. SIGHUP has the settings read again, by `reread`, and taken over. Calls `started` when it listens.

    While it finishes, it still listens: a load balancer is told 503 and by /ready, and not just refused.
    """
    _allow_many_connections()
    chatty = logging.getLogger("uvicorn").isEnabledFor(logging.INFO)
    config = uvicorn.Config(
        app,
        http=protocol(reranker.settings.header_timeout_s),
        access_log=chatty,
        log_config=None,
        timeout_graceful_shutdown=_LAST_WORDS_S,
    )
    server = _Server(config)
    server.when_started = started
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def begin(work: Coroutine[Any, Any, None]) -> None:
        task = loop.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def finish() -> None:
        await reranker.drain()
        server.should_exit = True

    async def reload() -> None:
        try:
            await reranker.apply(await asyncio.to_thread(reread))
        except RerankdError as error:
            _log.error("the settings were not taken over: %s", error.message)

    stopping = False

    def stop() -> None:
        nonlocal stopping
        if stopping:
            server.force_exit = server.should_exit = True
        else:
            stopping = True
            begin(finish())

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    # On a terminal SIGHUP says that it was closed.
    at_hangup = stop if sys.stdin is not None and sys.stdin.isatty() else lambda: begin(reload())
    loop.add_signal_handler(signal.SIGHUP, at_hangup)
    try:
        await server.serve(sockets=[sock])
    finally:
        for task in tasks.copy():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await reranker.close(at_once=server.force_exit)
        # After a second signal uvicorn doesn't wait for answers. Now that the engine is gone each request
        # under way gets its 503; cut off before that, uvicorn would answer 500 for it.
        if server.server_state.tasks:
            await asyncio.wait(server.server_state.tasks, timeout=_LAST_WORDS_S)


def _allow_many_connections() -> None:
    """Raise the limit of open files, often 1,024, to what this user may have: each connection is one."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


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
