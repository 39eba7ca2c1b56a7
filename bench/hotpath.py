"""Overhead of the service without a model, in time and CPU: python bench/hotpath.py [--rounds 5] [--only …]

The engine is tests/fake_engine.py (except for `worker`), which computes nothing and takes a fixed time per
document, so the rest is the service's own work. Requests go to the engine directly and through the service,
in alternation, over the same socket and with the same texts:

- throughput: 1,000 documents of 100 words in one request; - latency: 20 documents per request, which take
five calls to the engine; - worker: the same with an OpenVINO engine and a tiny model, which receives the
token ids of all 20 documents in
  one call;
- small: 200 requests of 2 documents per second, open loop: they are sent at a fixed rate, whether or not
  earlier ones have been answered. The engine takes no time.

The report shows wall time and the CPU time of the service's process. CPU time depends little on other load on
the machine, and it is what the service takes from an engine that uses all cores.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "faults"), str(Path(__file__).parents[1] / "tests")]

import gguf
from served import MODEL, Service, service

from rerankd.backends.worker import protocol
from rerankd.benchmark.load import text
from rerankd.domain import Recipe
from rerankd.formats import model_files
from rerankd.normalization import Normalization
from rerankd.scoring.inputs import Reader
from rerankd.serving.model_tokenizer import ModelVocabulary

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU time of a process in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def body(documents: int, words: int, seed: str) -> dict[str, Any]:
    pick = random.Random(seed)
    return {"query": text(pick, 8), "documents": [text(pick, words) for _ in range(documents)]}


def model(folder: Path) -> Path:
    """Copy the golden model with a max_length that all documents fit, since the fake engine counts each byte
    as a token. bench/truncation.py measures truncation."""
    path = folder / "model.gguf"
    shutil.copy(MODEL, path)
    field = gguf.GGUFReader(path, "r+").fields["bert.context_length"]
    field.parts[field.data[0]][0] = 8192
    return path


def engine_client(it: Service) -> httpx.AsyncClient:
    """The engine of the service, prepared past it over the same socket."""
    (socket,) = it.runtime.glob("rerankd-*/*.sock")
    return httpx.AsyncClient(
        transport=httpx.AsyncHTTPTransport(uds=str(socket)), base_url="http://engine", timeout=None
    )


async def timed(client: httpx.AsyncClient, path: str, **prepared: Any) -> float:
    """`prepared` is the body, as httpx takes it."""
    started = time.perf_counter()
    (await client.post(path, **prepared)).raise_for_status().json()
    return time.perf_counter() - started


async def turns(
    it: Service, documents: int, words: int, rounds: int, reader: Reader | None = None
) -> tuple[list[float], list[float], float]:
    """Return the latencies at the engine and through the service, and the service's CPU seconds per request.
    `reader` tokenizes the texts for a worker."""
    direct: list[float] = []
    through: list[float] = []
    cpu: list[float] = []
    async with engine_client(it) as engine, http(it) as client:
        for at in range(-1, rounds):
            prepared = body(documents, words, f"{documents} {at}")
            if reader is not None:
                inputs = await reader.plain(prepared["query"], prepared["documents"])
                direct_s = await timed(engine, "/score", content=protocol.render(inputs))
            else:
                direct_s = await timed(engine, "/v1/rerank", json=prepared)
            before = cpu_s(it.process.pid)
            through_s = await timed(client, "/v1/rerank", json=prepared)
            if at >= 0:
                direct.append(direct_s)
                through.append(through_s)
                cpu.append(cpu_s(it.process.pid) - before)
    return direct, through, statistics.fmean(cpu)


def http(it: Service) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=it.url, timeout=None, trust_env=False, limits=limits)


async def throughput(it: Service, options: argparse.Namespace) -> None:
    direct, through, cpu = await turns(it, options.documents, options.words, options.rounds)
    lost = [100 * (1 - a / b) for a, b in zip(direct, through, strict=True)]
    half, whole = statistics.median(direct), statistics.median(through)
    share = 100 * cpu / whole / (os.cpu_count() or 1)
    print(f"throughput: {options.documents} documents, an engine with {options.delay_ms:g} ms per document")
    print(f"  engine alone {half:.3f} s, through the service {whole:.3f} s, median of {options.rounds}")
    print(f"  overhead {statistics.median(lost):.1f} % (minimum {min(lost):.1f}, maximum {max(lost):.1f})")
    print(f"  CPU time of the service {cpu * 1000:.0f} ms/request, {share:.1f} % of all cores", flush=True)


async def latency(it: Service, options: argparse.Namespace) -> None:
    print(f"latency: 20 documents, an engine with {options.delay_ms:g} ms per document")
    tell_added(*await turns(it, 20, options.words, options.rounds * 10))


async def worker(it: Service, options: argparse.Namespace) -> None:
    words = min(options.words, 40)  # its max_length is small
    print(f"worker: 20 documents of {words} words, OpenVINO with a tiny model")
    recipe = Recipe("cross_encoder", 512, Normalization("sigmoid"), "rank")
    reader = Reader(recipe, await ModelVocabulary(model_files.read(MODEL)).tokenizer())
    tell_added(*await turns(it, 20, words, options.rounds * 10, reader))


def tell_added(direct: list[float], through: list[float], cpu: float) -> None:
    added = [1000 * (b - a) for a, b in zip(direct, through, strict=True)]
    alone, whole = (1000 * statistics.median(each) for each in (direct, through))
    print(f"  p50 engine alone {alone:.1f} ms, through the service {whole:.1f} ms")
    print(f"  added, median of {len(added)} pairs {statistics.median(added):.1f} ms", end="; ")
    print(f"CPU time of the service {cpu * 1000:.1f} ms/request", flush=True)


class Lean:
    """A client with little overhead: 32 connections, and only the HTTP features that the service uses."""

    def __init__(self, url: str) -> None:
        self._address = url.removeprefix("http://").split(":")
        self._idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()

    async def connect(self) -> None:
        host, port = self._address
        for _ in range(32):
            self._idle.put_nowait(await asyncio.open_connection(host, int(port)))

    async def post(self, data: bytes) -> None:
        reader, writer = await self._idle.get()
        head = b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data)
        writer.write(head + data)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 200"), head
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        self._idle.put_nowait((reader, writer))

    async def close(self) -> None:
        while not self._idle.empty():
            self._idle.get_nowait()[1].close()


async def small(it: Service, options: argparse.Namespace) -> None:
    rate = 200
    bodies = [json.dumps(body(2, 20, f"small {at}")).encode() for at in range(rate * options.seconds)]
    took: list[float] = []
    client = Lean(it.url)
    await client.connect()
    await client.post(bodies[0])
    before, started = cpu_s(it.process.pid), time.perf_counter()

    async def one(at: int) -> None:
        due = started + at / rate
        await asyncio.sleep(max(due - time.perf_counter(), 0))
        await client.post(bodies[at])
        took.append(time.perf_counter() - due)

    await asyncio.gather(*map(one, range(len(bodies))))
    wall, cpu = time.perf_counter() - started, cpu_s(it.process.pid) - before
    await client.close()
    half, most = (1000 * statistics.quantiles(took, n=20)[at] for at in (9, 18))
    print(f"small: {rate} requests/s of 2 documents, for {options.seconds} s")
    print(f"  {len(took) / wall:.0f} responses/s, p50 {half:.1f} ms, p95 {most:.1f} ms")
    print(f"  CPU time of the service {1e6 * cpu / len(took):.0f} µs/request", end=", ")
    print(f"{100 * cpu / wall:.0f} % of a core", flush=True)


def serving(folder: Path, name: str, delay_ms: float) -> AbstractContextManager[Service]:
    more: dict[str, Any] = {"model": model(folder), "cache_entries": 0}
    if name == "worker":
        return service(folder, real=True, engine="openvino", force=True, **more | {"model": MODEL})
    return service(folder, "--delay-ms", str(delay_ms), **more)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--delay-ms", type=float, default=5, help="time of the engine per document")
    parser.add_argument("--seconds", type=int, default=10, help="duration of the small requests")
    parser.add_argument("--only", choices=["throughput", "latency", "worker", "small"])
    options = parser.parse_args(arguments)
    for name, delay_ms, run in (
        ("throughput", options.delay_ms, throughput),
        ("latency", options.delay_ms, latency),
        ("worker", 0, worker),
        ("small", 0, small),
    ):
        if options.only in (None, name):
            with (
                tempfile.TemporaryDirectory(prefix="rb") as folder,
                serving(Path(folder), name, delay_ms) as it,
            ):
                asyncio.run(run(it, options))


if __name__ == "__main__":
    main()
