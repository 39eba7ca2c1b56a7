"""What a server in front costs and keeps: python bench/upstream.py [--part hop|throughput|fairness] [--json]

Real programs with an engine that only waits (tests/fake_engine.py), on this machine.

- hop: latency of a request with 50 documents of 100 words, all scores cached, sent directly and through a
  server in front by turns: the difference is what the server in front costs.
- throughput: requests per second of 16 clients with different queries, through a server in front of one
  server and of two, whose engines wait 2 ms for each document.
- fairness: latency of a client that sends one request at a time, while another one has 16 under way:
  directly, through a server in front that its upstream trusts, and through one that it does not trust.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

from service_cpu import cpu_s

import fake_engine
from rerankd.benchmark.load import text
from rerankd.onward import CLIENT_HEADER
from support import GOLDEN, Program, golden, start_serving

MODEL = str(GOLDEN / golden("xlmr-head")["model"])
PARTS = ("hop", "throughput", "fairness")
CLIENTS = 16
_TRUST = {"RERANKD_TRUSTED_FRONTS": "127.0.0.1"}


@contextmanager
def serving(*arguments: str, flags: tuple[str, ...] = (), **env: str) -> Iterator[Program]:
    """A rerankd program; with `flags` it has the fake engine."""
    with tempfile.TemporaryDirectory(prefix="rd-") as folder:
        if flags:
            arguments = (MODEL, "--engine", "llama", *arguments)
            env["RERANKD_LLAMA_PATH"] = str(fake_engine.install(Path(folder), *flags))
        program = start_serving(Path(folder), *arguments, **env)
        try:
            yield program
        finally:
            program.stop()
            assert program.process.stderr is not None
            program.process.stderr.close()


@contextmanager
def in_front(*servers: Program, **env: str) -> Iterator[Program]:
    """A server in front of these."""
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write("".join(f'[upstreams.u{at}]\nurl = "{one.url}"\n' for at, one in enumerate(servers)))
        file.flush()
        with serving("--config", file.name, **env) as program:
            yield program


def body(seed: str, documents: int, words: int) -> bytes:
    pick = random.Random(seed)
    sent = {"query": text(pick, 8), "documents": [text(pick, words) for _ in range(documents)]}
    return json.dumps(sent).encode()


class Connection:
    """One connection to a server; `headers` are sent with each request."""

    def __init__(self, url: str, **headers: str) -> None:
        self._address = url.removeprefix("http://").split(":")
        self._head = "POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\n"
        self._head += "".join(f"{name}: {value}\r\n" for name, value in headers.items())

    async def __aenter__(self) -> Connection:
        self._reader, self._writer = await asyncio.open_connection(self._address[0], int(self._address[1]))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        await self._writer.wait_closed()

    async def post(self, data: bytes) -> None:
        self._writer.write(f"{self._head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
        head = (await self._reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        await self._reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))


async def latency_ms(client: Connection, sent: bytes) -> float:
    started = time.perf_counter()
    await client.post(sent)
    return 1000 * (time.perf_counter() - started)


async def hop(rounds: int) -> dict[str, float]:
    with serving(flags=("--delay-ms", "0")) as direct, in_front(direct) as front:
        sent = body("hop", 50, 100)
        async with Connection(direct.url) as one, Connection(front.url) as other:
            clients = {"direct": one, "through a front": other}
            took: dict[str, list[float]] = {name: [] for name in clients}
            for client in clients.values():
                await latency_ms(client, sent)
            used_s = cpu_s(Path(f"/proc/{front.process.pid}/stat"))
            for _ in range(rounds):
                for name, client in clients.items():
                    took[name].append(await latency_ms(client, sent))
            used_s = cpu_s(Path(f"/proc/{front.process.pid}/stat")) - used_s
    found = {f"{name}, p50 ms": statistics.median(values) for name, values in took.items()}
    found["hop, p50 ms"] = found["through a front, p50 ms"] - found["direct, p50 ms"]
    return found | {"CPU of the front a request, ms": 1000 * used_s / rounds}


async def requests_per_s(url: str, seed: str, rounds: int) -> float:
    left = iter([body(f"{seed} {at}", 10, 20) for at in range(4 * rounds)])

    async def one() -> None:
        async with Connection(url) as client:
            for sent in left:
                await client.post(sent)

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return 4 * rounds / (time.perf_counter() - started)


async def throughput(rounds: int) -> dict[str, float]:
    found = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(serving(flags=("--delay-ms", "2"))) for _ in range(2)]
        fronts = {count: stack.enter_context(in_front(*servers[:count])) for count in (1, 2)}
        for count, front in fronts.items():
            await requests_per_s(front.url, f"warm {count}", 16)
            found[f"{count} behind a front, requests/s"] = await requests_per_s(front.url, str(count), rounds)
    one, two = found.values()
    return found | {"two against one": two / one}


async def modest_ms(url: str, names: tuple[str, str], seed: str, rounds: int) -> float:
    """The p50 latency of a client with one request at a time, while another has CLIENTS under way."""
    is_over = False

    async def greedy(number: int) -> None:
        async with Connection(url, **{CLIENT_HEADER: names[0]}) as client:
            turn = 0
            while not is_over:
                turn += 1
                await client.post(body(f"{seed} {number} {turn}", 10, 20))

    others = [asyncio.create_task(greedy(number)) for number in range(CLIENTS)]
    async with Connection(url, **{CLIENT_HEADER: names[1]}) as client:
        took = [await latency_ms(client, body(f"{seed} modest {at}", 10, 20)) for at in range(rounds)]
    is_over = True
    await asyncio.gather(*others)
    return statistics.median(took)


async def fairness(rounds: int) -> dict[str, float]:
    names = ("greedy", "modest")
    flags = ("--delay-ms", "2")
    # The servers in front trust the benchmark, too, which so has two clients from one address.
    with (
        serving(flags=flags, **_TRUST) as trusting,
        serving(flags=flags) as other,
        in_front(trusting, **_TRUST) as trusted,
        in_front(other, **_TRUST) as plain,
    ):
        return {
            "directly, p50 ms": await modest_ms(trusting.url, names, "a", rounds),
            "through a trusted front, p50 ms": await modest_ms(trusted.url, names, "b", rounds),
            "through another front, p50 ms": await modest_ms(plain.url, names, "c", rounds),
        }


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--part", choices=PARTS, action="append", help="default: all")
    flags.add_argument("--rounds", type=int, default=100)
    flags.add_argument("--json", action="store_true")
    options = flags.parse_args()
    work = {"hop": hop, "throughput": throughput, "fairness": fairness}
    found = {part: asyncio.run(work[part](options.rounds)) for part in options.part or PARTS}
    if options.json:
        print(json.dumps(found))
        return
    for part, figures in found.items():
        print(part)
        for name, value in figures.items():
            print(f"  {name:<36}{value:8.2f}")


if __name__ == "__main__":
    main()
