"""Serve the tools over standard input and output, or over HTTP, until the client or a signal ends it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.message import SessionMessage
from mcp_types import PARSE_ERROR, ErrorData, JSONRPCError
from pydantic import ValidationError

from rerankd.config import Settings
from rerankd.errors import OutputFailed
from rerankd.keys import Keys
from rerankd.mcp_server.scorer import Scorer

PATH = "/mcp"


async def serve_stdio(server: Server, scorer: Scorer) -> None:
    """Serve one client until it closes its end, or until SIGTERM or SIGINT. Raises OutputFailed if standard
    output can't be written."""
    with _signals() as stopped:
        serving = asyncio.create_task(_run_stdio(server))
        waiting = asyncio.create_task(stopped.wait())
        await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        await scorer.close()
        if not serving.done():
            os._exit(0)  # a thread reads standard input, and nothing can interrupt it
        try:
            await serving
        except BaseExceptionGroup as failed:
            error = _only_os_error(failed)
            if error is None:
                raise
            if not isinstance(error, BrokenPipeError):  # the client has gone
                raise OutputFailed(
                    f"The client can't be answered on standard output: {error.strerror}."
                ) from None


async def _run_stdio(server: Server) -> None:
    # The SDK also keeps what others print to standard output out of the protocol.
    async with stdio_server() as (reader, writer), anyio.create_task_group() as tasks:
        forward, received = anyio.create_memory_object_stream[SessionMessage | Exception]()

        async def read() -> None:
            async with forward:
                async for item in reader:
                    if not isinstance(item, Exception):
                        await forward.send(item)
                    elif (answer := _refusal(item)) is not None:
                        await writer.send(SessionMessage(answer))

        tasks.start_soon(read)
        await server.run(received, writer, server.create_initialization_options())
        tasks.cancel_scope.cancel()


def _refusal(error: Exception) -> JSONRPCError | None:
    """Return the answer to a line that the SDK can't parse, None if it is no request. Without an answer, the
    client would wait. Half of a character (a lone surrogate) is what clients send in earnest."""
    fault = error.errors()[0] if isinstance(error, ValidationError) else None
    try:
        request = json.loads(fault["input"]) if fault else None
    except (TypeError, ValueError, RecursionError):
        return None
    number = request.get("id") if isinstance(request, dict) else None
    if fault is None or not (type(number) is int or (isinstance(number, str) and number.isascii())):
        return None
    message = f"The request is not valid JSON in Unicode: {fault['msg'].removeprefix('Invalid JSON: ')}."
    return JSONRPCError(jsonrpc="2.0", id=number, error=ErrorData(code=PARSE_ERROR, message=message))


def _only_os_error(failed: BaseException) -> OSError | None:
    """Return the OSError of a group that consists of nothing else."""
    while isinstance(failed, BaseExceptionGroup) and len(failed.exceptions) == 1:
        failed = failed.exceptions[0]
    return failed if isinstance(failed, OSError) else None


async def serve_http(
    server: Server,
    scorer: Scorer,
    settings: Settings,
    keys: Keys,
    sock: socket.socket,
    listening: Callable[[], None],
) -> None:
    """Serve clients on a listening socket until SIGTERM or SIGINT. `settings` has the host of the socket."""
    from rerankd.api.guarded import Guarded
    from rerankd.api.server import Server as WebServer

    app = server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=settings.max_body_bytes,
        # Guarded checks hosts and origins, by the settings that the service has for them.
        transport_security=TransportSecuritySettings(enable_dns_rebinding_protection=False),
    )
    web = WebServer(Guarded(app, settings, keys), settings=settings, listening=listening, streams=True)
    with _signals() as stopped:
        async with server.session_manager.run():
            serving = asyncio.create_task(web.serve([sock]))
            waiting = asyncio.create_task(stopped.wait())
            await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            web.end()
        await serving  # the end of the sessions has ended its open streams
        await scorer.close()


@contextmanager
def _signals() -> Iterator[asyncio.Event]:
    """Yield an event that SIGTERM and SIGINT set."""
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stopped.set)
    try:
        yield stopped
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
