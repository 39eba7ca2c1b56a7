"""CPU time of the service and of a worker's process per pair, with an engine that computes nothing: python
bench/service_cpu.py [--vocabulary unigram] [--rounds 10]

16 clients send requests of 100 documents of 100 words, all different, to the real service with its defaults;
bench/instant.py is the engine, and bench/vocabularies.py makes the models. Each line of the table is one
vocabulary. CPU times are those of the kernel for processes and threads, so other load on the machine hardly
changes them: of the whole service, of its event loop's thread, which holds Python's lock nearly all the time,
and of the worker. `health` is the latency of GET /health under the same load: how long the loop is blocked.
`20 documents` is the latency of single requests of 20 documents to the idle service.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import vocabularies
from hotpath import Lean
from programs import wait_for_port

from rerankd.benchmark.load import text

_TICKS = os.sysconf("SC_CLK_TCK")
PORT, CLIENTS, DOCUMENTS, WORDS = 11444, 16, 100, 100
_PROBE_S = 0.02


def cpu_s(stat: Path) -> float:
    """The CPU time of a process or a thread in seconds, from its `stat` below /proc."""
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def body(documents: int, seed: str) -> bytes:
    pick = random.Random(seed)
    value = {"query": text(pick, 8), "documents": [text(pick, WORDS) for _ in range(documents)]}
    return json.dumps(value).encode()


async def load(client: Lean, bodies: list[bytes]) -> float:
    """Send the bodies from CLIENTS connections; return the seconds."""
    left = iter(bodies)

    async def one() -> None:
        for each in left:
            await client.post(each)

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(CLIENTS)))
    return time.perf_counter() - started


async def probe(took: list[float]) -> None:
    """Append the latency of GET /health, every _PROBE_S seconds, in ms."""
    reader, writer = await asyncio.open_connection("127.0.0.1", PORT)
    while True:
        started = time.perf_counter()
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        await reader.readexactly(int(head.partition(b"content-length:")[2].split(b"\r\n")[0]))
        took.append(1000 * (time.perf_counter() - started))
        await asyncio.sleep(_PROBE_S)


async def measured(service: int, rounds: int) -> list[str]:
    """The figures of one row."""
    client = Lean(f"http://127.0.0.1:{PORT}")
    await client.connect()
    await load(client, [body(DOCUMENTS, f"warm {at}") for at in range(2 * CLIENTS)])
    (worker,) = Path(f"/proc/{service}/task/{service}/children").read_text().split()
    watched = [Path(f"/proc/{path}/stat") for path in (service, f"{service}/task/{service}", worker)]
    count = rounds * CLIENTS

    bodies = [body(DOCUMENTS, f"load {at}") for at in range(count)]
    before = [cpu_s(one) for one in watched]
    seconds = await load(client, bodies)
    spent = [
        (cpu_s(one) - earlier) / count / DOCUMENTS * 1000
        for one, earlier in zip(watched, before, strict=True)
    ]

    took: list[float] = []
    probing = asyncio.create_task(probe(took))
    await load(client, [body(DOCUMENTS, f"probed {at}") for at in range(count)])
    probing.cancel()
    half, most = (statistics.quantiles(took, n=100)[at] for at in (49, 98))

    small = []
    for at in range(60):
        each = body(20, f"small {at}")
        started = time.perf_counter()
        await client.post(each)
        small.append(1000 * (time.perf_counter() - started))
    await client.close()
    rate = count * DOCUMENTS / seconds
    return [
        *(f"{one:.3f}" for one in spent),
        f"{rate:.0f}",
        f"{half:.0f} / {most:.0f}",
        f"{statistics.median(small):.1f}",
    ]


def row(folder: Path, kind: str, rounds: int) -> list[str]:
    """Start the service for one vocabulary and measure it."""
    model = vocabularies.model(folder, kind)
    settings = {"MODEL": str(model), "PORT": str(PORT), "ENGINE": "instant", "HOME": str(folder / "home")}
    environment = {**os.environ, **{f"RERANKD_{name}": value for name, value in settings.items()}}
    program = str(Path(__file__).with_name("instant.py"))
    service = subprocess.Popen([sys.executable, program, "serve"], stderr=subprocess.DEVNULL, env=environment)
    try:
        wait_for_port(service, PORT)
        return asyncio.run(measured(service.pid, rounds))
    finally:
        service.send_signal(signal.SIGTERM)
        service.wait()


HEADINGS = ["vocabulary", "service", "its loop", "worker", "pairs/s", "health p50 / p99", "20 documents"]
UNITS = ["", "s per 1,000", "s per 1,000", "s per 1,000", "", "ms", "ms, median"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabulary", action="append", choices=vocabularies.KINDS)
    parser.add_argument("--rounds", type=int, default=10, help="requests of each client")
    parser.add_argument("--models", type=Path, help="a folder that keeps the models for the next run")
    options = parser.parse_args()
    for line in (HEADINGS, UNITS):
        print("| " + " | ".join(line) + " |", flush=True)
    print("|---" * len(HEADINGS) + "|", flush=True)
    with tempfile.TemporaryDirectory(prefix="rb") as scratch:
        folder = options.models or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for kind in options.vocabulary or vocabularies.KINDS:
            print("| " + " | ".join([kind, *row(folder, kind, options.rounds)]) + " |", flush=True)


if __name__ == "__main__":
    main()
