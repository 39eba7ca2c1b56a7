"""A load generator of one process: python bench/gpu_load.py, its task as a line of JSON on stdin.

It renders its requests, prints "ready", waits for another line, sends them, and prints its results as JSON.
Closed loop: each connection sends the next request after an answer. Open loop (`rate`): requests start at
random times at this rate, whether or not the earlier ones are answered; their latency counts from that time.
bench/gpu_service.py runs several of these, because one would be slower than the service on a GPU.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from rerankd.benchmark import load

_MARK = "SERIAL00"


@dataclass(frozen=True)
class Task:
    """`rate`: requests per second of this process; 0 for a closed loop. `models`: the names to choose from.
    `bodies`: rendered requests; if more are sent, their queries differ and their documents are repeated."""

    port: int
    connections: int = 1
    seconds: float = 1.0
    rate: float = 0.0
    documents: tuple[int, int] = (100, 100)
    words: tuple[int, int] = (100, 100)
    models: tuple[str, ...] = ()
    bodies: int = 64
    seed: int = 0
    timeout_s: float = 120.0


@dataclass
class Found:
    """`latencies_ms` of the requests that were answered; `pairs` counts their documents; `failed` has the
    reasons of the others. `elapsed_s`: until the last answer. `cpu_s`: this process, while it sent."""

    latencies_ms: list[float] = field(default_factory=list)
    pairs: int = 0
    failed: list[str] = field(default_factory=list)
    elapsed_s: float = 0.0
    cpu_s: float = 0.0


@dataclass(frozen=True)
class Body:
    data: bytes
    documents: int

    def numbered(self, serial: int) -> bytes:
        """The body with a query of its own, so that no cache answers."""
        return self.data.replace(_MARK.encode(), b"n%07d" % serial, 1)


class Client:
    """Kept connections to one server."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        kept = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._task.port)
        try:
            yield kept
        except BaseException:
            kept[1].close()
            raise
        self._idle.append(kept)

    async def post(self, data: bytes) -> tuple[int, bytes]:
        """The status and the body of the answer."""
        head = f"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n"
        async with asyncio.timeout(self._task.timeout_s), self._connection() as (reader, writer):
            writer.write(head.encode() + b"content-type: application/json\r\n\r\n" + data)
            lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
            length = next(int(one[15:]) for one in lines if one.startswith(b"content-length:"))
            return int(lines[0].split()[1]), await reader.readexactly(length)


def rendered(task: Task) -> list[Body]:
    pick = random.Random(task.seed)
    made = []
    for _ in range(task.bodies):
        documents = [load.text(pick, pick.randint(*task.words)) for _ in range(pick.randint(*task.documents))]
        query = f"{_MARK} {load.text(pick, load.QUERY_WORDS)}"
        fields: dict[str, Any] = {"query": query, "documents": documents}
        if task.models:
            fields["model"] = pick.choice(task.models)
        made.append(Body(json.dumps(fields).encode(), len(documents)))
    return made


async def send(task: Task, bodies: list[Body]) -> Found:
    client, found, serial = Client(task), Found(), iter(range(task.seed * 100_000, sys.maxsize))
    started = time.perf_counter()

    async def once(since: float) -> None:
        number = next(serial)
        body = bodies[number % len(bodies)]
        try:
            status, answer = await client.post(body.numbered(number))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            found.failed.append(f"{type(error).__name__}: {error}")
            return
        if status != 200:
            found.failed.append(f"{status} {answer[:300].decode(errors='replace')}")
            return
        found.latencies_ms.append(round(1000 * (time.perf_counter() - since), 3))
        found.pairs += body.documents

    async def client_loop() -> None:
        while time.perf_counter() - started < task.seconds:
            await once(time.perf_counter())

    async def open_loop() -> None:
        pick, at = random.Random(f"times {task.seed}"), 0.0
        async with asyncio.TaskGroup() as group:
            while (at := at + pick.expovariate(task.rate)) < task.seconds:
                await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
                group.create_task(once(started + at))

    before = _cpu()
    if task.rate:
        await open_loop()
    else:
        await asyncio.gather(*(client_loop() for _ in range(task.connections)))
    found.elapsed_s, found.cpu_s = time.perf_counter() - started, _cpu() - before
    return found


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    task = Task(**json.loads(sys.stdin.readline()))
    bodies = rendered(task)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(asdict(asyncio.run(send(task, bodies)))), flush=True)


if __name__ == "__main__":
    main()
