"""How long a small request takes beside a client that sends large ones: python bench/fairness.py

In one run, on one model file and with the same flags: llama-server's own endpoint (the bundled llama.cpp,
asked over its socket as rerankd asks it), and rerankd over HTTP. Documents are all different, so that no
cache helps. It also says how many documents a second the bulk client got, since fairness can always be had
for throughput. With --fake-ms the engine is tests/fake_engine.py, which takes so long for a document and
needs no CPU: then the figures are those of the queue alone, on a busy machine too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests" / "faults")]
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import encoder
from served import service

import fake_engine
from rerankd.backends.base import EngineSpec
from rerankd.backends.llama import launch
from rerankd.backends.llama.client import LlamaClient
from rerankd.config import Settings
from rerankd.process.child import Child
from rerankd.serving.prepare_model import prepare

Ask = Callable[[int], Awaitable[None]]
_WORDS = (
    "the",
    "a",
    "of",
    "to",
    "and",
    "in",
    "is",
    "for",
    "bear",
    "train",
    "lake",
    "router",
    "bread",
    "glass",
)


def text(words: int) -> str:
    return " ".join(random.choices(_WORDS, k=words)) + f" {random.random()}"


async def measure(ask: Ask, options: argparse.Namespace) -> dict[str, float]:
    """Seconds of small requests alone and beside the bulk client, and the bulk client's documents a second,
    alone and beside."""

    async def small(count: int) -> list[float]:
        took = []
        for _ in range(count):
            started = time.perf_counter()
            await ask(options.small)
            took.append(time.perf_counter() - started)
            await asyncio.sleep(0.05)
        return took

    scored = 0

    async def bulk() -> None:
        nonlocal scored
        while True:
            await ask(options.bulk)
            scored += options.bulk

    await ask(options.small)
    alone = await small(options.count)
    started = time.perf_counter()
    for _ in range(2):
        await ask(options.bulk)
    bulk_alone = 2 * options.bulk / (time.perf_counter() - started)
    started = time.perf_counter()
    task = asyncio.create_task(bulk())
    await asyncio.sleep(0.5)
    beside = await small(options.count)
    # At least one whole bulk request, or its rate would be 0.
    while not scored:
        await asyncio.sleep(0.01)
    rate = scored / (time.perf_counter() - started)
    task.cancel()
    await asyncio.wait([task])
    return {
        "alone_p50_s": statistics.median(alone),
        "alone_p95_s": statistics.quantiles(alone, n=20)[-1],
        "beside_p50_s": statistics.median(beside),
        "beside_p95_s": statistics.quantiles(beside, n=20)[-1],
        "bulk_alone_per_s": bulk_alone,
        "bulk_beside_per_s": rate,
    }


def body(count: int, options: argparse.Namespace) -> dict[str, Any]:
    return {"query": text(8), "documents": [text(options.words) for _ in range(count)]}


async def plain(path: Path, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """llama-server's own endpoint."""
    model = prepare(Settings(model=str(path), home=folder))
    spec = EngineSpec(model.name, model.path, model.recipe, model.metadata.control_tokens, model.spec.exact)
    program = (sys.executable, "-m", "rerankd.backends.llama.bundled")
    if options.fake_ms:
        program = (str(fake_engine.install(folder, "--delay-ms", str(options.fake_ms))),)
    socket = folder / "p.sock"
    argv = launch.argv(spec, launch.EngineOptions(program, options.threads), socket)
    child = await Child.start(argv, folder / "plain.log")
    client = LlamaClient(socket)
    while not await client.is_ready():
        await asyncio.sleep(0.05)

    async def ask(count: int) -> None:
        await client.post("/v1/rerank", body(count, options))

    try:
        return await measure(ask, options)
    finally:
        await client.close()
        await child.stop(5)


async def ours(path: Path, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """rerankd's."""
    flags = ("--delay-ms", str(options.fake_ms))
    real = not options.fake_ms
    more = {"threads": options.threads, "force": True}
    with service(folder, *flags, real=real, model=path, engine=options.engine, **more) as it:
        async with httpx.AsyncClient(base_url=it.url, timeout=None, trust_env=False) as client:

            async def ask(count: int) -> None:
                answer = await client.post("/v1/rerank", json=body(count, options))
                answer.raise_for_status()

            return await measure(ask, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--model", type=Path, help="a file with a rank head; default: a random one, 12 x 384")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--small", type=int, default=10, help="documents of a small request")
    parser.add_argument("--bulk", type=int, default=400, help="documents of a bulk request")
    parser.add_argument("--words", type=int, default=30)
    parser.add_argument("--count", type=int, default=40, help="small requests that are timed, each way")
    parser.add_argument("--fake-ms", type=float, default=0, help="a fake engine, so slow a document")
    parser.add_argument("--engine", choices=["auto", "llama", "openvino"], default="auto")
    parser.add_argument("--only", choices=["llama-server", "rerankd"])
    options = parser.parse_args()
    path = options.model or encoder.make(options.folder)
    figures = {}
    with tempfile.TemporaryDirectory(prefix="rb") as folder:
        for name, run in (("llama-server", plain), ("rerankd", ours)):
            if options.only in (None, name):
                figures[name] = asyncio.run(run(path, options, Path(folder)))
                told = {key: round(value, 4) for key, value in figures[name].items()}
                print(name, json.dumps(told), flush=True)
    for name, got in figures.items():
        ratio = got["beside_p95_s"] / got["alone_p50_s"]
        print(f"{name}: a small request takes {ratio:.1f} times as long beside the bulk client (p95 / alone)")


if __name__ == "__main__":
    main()
