"""Connections to an engine: keep-alive, reconnect on disconnect, close when a call is cancelled."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from rerankd.process.http import Answer, Connections

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
Respond = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]


class Engine:
    """What `respond` does with each request; `heads` has those that came, `ends` counts connections' ends."""

    def __init__(self, respond: Respond) -> None:
        self.respond = respond
        self.heads: list[bytes] = []
        self.connections = 0
        self.ended = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = next(
                    (int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0
                )
                body = await reader.readexactly(length)
                await self.respond(reader, writer, body)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        self.ended.set()


@contextlib.asynccontextmanager
async def engine(folder: Path, respond: Respond) -> AsyncIterator[tuple[Engine, Connections]]:
    made = Engine(respond)
    server = await asyncio.start_unix_server(made.handle, folder / "s")
    client = Connections(folder / "s")
    try:
        yield made, client
    finally:
        client.close()
        server.close()
        await asyncio.gather(*made.tasks)


async def answer_ok(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(OK)


async def test_consecutive_calls_share_a_connection(tmp_path: Path) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))

    large = b'"' + b"x" * 3_000_000 + b'"'
    async with engine(tmp_path, echo) as (made, client):
        assert await client.post("/v1/rerank", b'{"a":1}') == Answer(200, b'{"a":1}')
        assert (await client.post("/v1/rerank", large)).body == large
        assert (await client.get("/health")).body == b""
        assert made.connections == 1
    assert made.heads[0].startswith(b"POST /v1/rerank HTTP/1.1\r\nHost: engine\r\n")
    assert Answer(200, b'{"a":1}').json() == {"a": 1}


async def test_concurrent_calls_use_separate_connections(tmp_path: Path) -> None:
    all_here = asyncio.Barrier(3)

    async def together(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        await all_here.wait()
        writer.write(OK)

    async with engine(tmp_path, together) as (made, client):
        await asyncio.gather(*(client.get("/") for _ in range(3)))
        assert made.connections == 3


@pytest.mark.parametrize(
    "parts",
    [
        [b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\n", b"lo", b"ng"],
        [b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nlo\r\n", b"2\r\nng\r\n0\r\n\r\n"],
    ],
)
async def test_responses_in_parts_and_in_chunks(tmp_path: Path, parts: list[bytes]) -> None:
    async def slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)

    async with engine(tmp_path, slowly) as (made, client):
        assert await client.get("/") == Answer(500, b"long")
        assert await client.get("/") == Answer(500, b"long")
        assert made.connections == 1


async def test_an_engine_that_closes_after_its_response_gets_a_new_connection(tmp_path: Path) -> None:
    async def last(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}")
        writer.close()

    async with engine(tmp_path, last) as (made, client):
        for _ in range(3):
            assert (await client.get("/")).status == 200
        assert made.connections == 3


async def test_a_connection_closed_while_idle_is_not_an_error(tmp_path: Path) -> None:
    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        # It says nothing of closing, and reads no further request: it has hung up by the time of the next.
        writer.write(OK)
        await writer.drain()
        writer.close()

    async with engine(tmp_path, once) as (made, client):
        assert (await client.get("/")).status == 200
        assert (await client.post("/", b"{}")).status == 200
        assert made.connections == 2


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", b"hello, who is there?\r\n\r\n"]
)
async def test_a_closed_connection_without_response_and_invalid_http_are_errors(
    tmp_path: Path, said: bytes
) -> None:
    async def badly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(said)
        await writer.drain()
        writer.close()

    async with engine(tmp_path, badly) as (made, client):
        with pytest.raises(ConnectionError):
            await client.get("/")
        assert made.connections == 1


async def test_a_missing_engine_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        await Connections(tmp_path / "none").get("/")


class Never:
    """An engine that never answers. `asked` tells that it was asked."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        self.asked.set()
        await reader.readexactly(1)


async def test_a_cancelled_call_closes_its_connection(tmp_path: Path) -> None:
    never = Never()
    async with engine(tmp_path, never) as (made, client):
        call = asyncio.create_task(client.get("/"))
        await never.asked.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await made.ended.wait()


async def test_close_ends_running_calls_and_rejects_new_ones(tmp_path: Path) -> None:
    never = Never()
    async with engine(tmp_path, never) as (_, client):
        call = asyncio.create_task(client.get("/"))
        await never.asked.wait()
        client.close()
        with pytest.raises(ConnectionError):
            await call
        with pytest.raises(ConnectionError):
            await client.get("/")
