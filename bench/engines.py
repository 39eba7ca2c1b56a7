"""OpenVINO against llama.cpp: python bench/engines.py [--shape large] [--documents 64] [--rounds 5]

Both engines score the same texts with the same file and number of threads, in alternation, in one run. For a
random cross-encoder of a real shape, llama.cpp serves its own `/v1/rerank`: the bundled llama.cpp, or the
llama-server named by LLAMA_SERVER. With `--shape builtin`, it serves `/v1/embeddings` with the built-in
model. With `--whole`, rerankd on each engine is measured with HTTP requests too. Documents have 20 to 400
words, or `--words`.

The report also shows the share of this machine's float32 matrix product peak that OpenVINO reaches.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests" / "faults")]
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import encoder
from served import service

from rerankd.backends.base import Batch, Engine, EngineSpec
from rerankd.backends.llama import launch
from rerankd.backends.llama.client import LlamaClient
from rerankd.backends.openvino.backend import OpenVinoBackend, OpenVinoOffer
from rerankd.backends.openvino.options import OpenVinoOptions
from rerankd.backends.openvino.precision import Choice
from rerankd.config import Settings
from rerankd.formats.weights import Weights
from rerankd.process.child import Child
from rerankd.scoring.inputs import Reader
from rerankd.serving.model_tokenizer import ModelVocabulary, reader
from rerankd.serving.prepare_model import Model, prepare

Ask = Callable[[str, list[str]], Awaitable[int]]
"""Scores texts for a query, and returns the number of tokens processed."""
_WORDS = "the a of to and in is for bear train lake router bread glass panda river ticket".split()  # noqa: SIM905


def texts(options: argparse.Namespace, seed: int, longest: int = 400) -> tuple[str, list[str]]:
    """Return a query and documents that were not used before."""
    pick = random.Random(seed)
    sizes = [options.words or pick.randint(20, longest) for _ in range(options.documents)]
    return " ".join(pick.choices(_WORDS, k=8)), [" ".join(pick.choices(_WORDS, k=size)) for size in sizes]


async def start(child: Child, client: Any, log: Path) -> float:
    """Return the seconds until the engine is ready."""
    started = time.perf_counter()
    while not await client.is_ready():
        assert child.exit_code is None, log.read_text()
        await asyncio.sleep(0.02)
    return time.perf_counter() - started


async def llama(model: Model, options: argparse.Namespace, folder: Path, stack: AsyncExitStack) -> Ask:
    named = os.environ.get("LLAMA_SERVER")
    program = (named,) if named else (sys.executable, "-m", "rerankd.backends.llama.bundled")
    spec = EngineSpec(model.name, model.path, model.recipe, model.metadata.control_tokens, False)
    socket, log = folder / "l.sock", folder / "llama.log"
    child = await Child.start(launch.argv(spec, launch.EngineOptions(program, options.threads), socket), log)
    stack.push_async_callback(child.stop, 2)
    client = LlamaClient(socket)
    stack.push_async_callback(client.close)
    print(
        f"llama.cpp ({named or 'bundled'}): ready after {await start(child, client, log):.1f} s", flush=True
    )

    async def rerank(query: str, documents: list[str]) -> int:
        answer = await client.compute("/v1/rerank", {"query": query, "documents": documents})
        return int(answer["usage"]["prompt_tokens"])

    async def embed(query: str, documents: list[str]) -> int:
        inputs = [f"query: {query}", *(f"passage: {text}" for text in documents)]
        answer = await client.compute("/v1/embeddings", {"input": inputs, "encoding_format": "base64"})
        return int(answer["usage"]["prompt_tokens"])

    return rerank if model.recipe.method == "cross_encoder" else embed


async def started_worker(
    model: Model, options: argparse.Namespace, folder: Path, stack: AsyncExitStack
) -> tuple[Engine, Reader]:
    """Start an OpenVINO engine, which the stack stops; return its client and the reader of its texts."""
    backend = OpenVinoBackend()
    spec = replace(model.spec, threads=options.threads)
    offer = backend.offer(spec, OpenVinoOptions(weights=options.weights), True)
    assert isinstance(offer, OpenVinoOffer), offer.reason
    offer = replace(offer, precision=Choice(options.precision, "as prepared"))
    socket, log = folder / "o.sock", folder / "openvino.log"
    launched = backend.launch(offer, (), (), socket)
    child = await Child.start(launched.argv, log)
    stack.push_async_callback(child.stop, 2)
    engine = launched.connect(socket)
    stack.push_async_callback(engine.close)
    ready_s = await start(child, engine, log)
    await engine.prepare()
    print(f"{engine.about}: ready after {ready_s:.1f} s", flush=True)
    return engine, reader(offer, await ModelVocabulary(model.metadata).tokenizer())


async def worker(model: Model, options: argparse.Namespace, folder: Path, stack: AsyncExitStack) -> Ask:
    engine, read_by = await started_worker(model, options, folder, stack)

    async def ask(query: str, documents: list[str]) -> int:
        inputs = await read_by.plain(query, documents)
        await engine.score(Batch(tuple(inputs)))
        return sum(one.tokens for one in inputs)

    return ask


async def whole(
    kind: str, model: Model, options: argparse.Namespace, folder: Path, stack: AsyncExitStack
) -> Ask:
    """Start rerankd with one engine, and return a function that sends it HTTP requests."""
    home = folder / kind
    home.mkdir()
    settings = {"model": model.path, "threads": options.threads, "engine": kind, "force": True}
    it = stack.enter_context(service(home, real=True, cache_entries=0, request_timeout_s=3600, **settings))
    http = httpx.AsyncClient(base_url=it.url, timeout=None, trust_env=False)
    stack.push_async_callback(http.aclose)

    async def ask(query: str, documents: list[str]) -> int:
        answer = await http.post("/v1/rerank", json={"query": query, "documents": documents})
        return int(answer.raise_for_status().json()["usage"]["total_tokens"])

    return ask


async def in_turns(sides: dict[str, Ask], options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the seconds of each round, after one warm-up round."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(options.rounds + 1):
        query, documents = texts(options, number)
        for name, ask in sides.items():
            started = time.perf_counter()
            tokens = await ask(query, documents)
            if number:
                took[name].append(time.perf_counter() - started)
        if not number:
            print(f"{len(documents)} documents, about {tokens} tokens a round", flush=True)
    return took


def tell(took: dict[str, list[float]], base: str, options: argparse.Namespace) -> None:
    for name, seconds in took.items():
        ratios = [one / other for one, other in zip(took[base], seconds, strict=True)]
        each = ", ".join(f"{value:.2f}" for value in seconds)
        print(
            f"{name:22s} {statistics.median(seconds):7.2f} s  "
            f"{options.documents / statistics.median(seconds):7.2f} documents/s  "
            f"{statistics.median(ratios):5.2f} times {base}   ({each})",
            flush=True,
        )


def peak_share(model: Model, seconds: Sequence[float], tokens: int) -> str:
    """Return the FLOPS that the engine's matrix products reach, and their share of numpy's."""
    weights = Weights(model.path)
    width, hidden = weights.key("embedding_length"), weights.key("feed_forward_length")
    flops = 2.0 * tokens * weights.key("block_count") * (4 * width**2 + 2 * width * hidden)
    left, right = np.ones((1024, 2048), np.float32), np.ones((2048, 2048), np.float32)
    best = 0.0
    for _ in range(10):
        started = time.perf_counter()
        left @ right
        best = max(best, 2.0 * 1024 * 2048**2 / (time.perf_counter() - started))
    reached = flops / min(seconds)
    return f"{reached / 1e9:.0f} of {best / 1e9:.0f} GFLOP/s ({reached / best:.0%}), both the best of the run"


async def run(options: argparse.Namespace) -> None:
    builtin = options.shape == "builtin"
    path = "builtin:e5" if builtin else str(encoder.make(options.folder, options.shape))
    model = prepare(Settings(model=path, **({} if builtin else {"home": options.folder})))
    with tempfile.TemporaryDirectory(prefix="rb") as name:
        folder = Path(name)
        async with AsyncExitStack() as stack:
            sides = {
                "llama.cpp": await llama(model, options, folder, stack),
                "OpenVINO": await worker(model, options, folder, stack),
            }
            took = await in_turns(sides, options)
            tokens = await sides["OpenVINO"](*texts(options, 0))
        tell(took, "llama.cpp", options)
        print("OpenVINO: " + peak_share(model, took["OpenVINO"], tokens), flush=True)
        if options.whole:
            async with AsyncExitStack() as stack:
                sides = {
                    f"rerankd on {kind}": await whole(kind, model, options, folder, stack)
                    for kind in ("llama", "openvino")
                }
                took = await in_turns(sides, options)
            tell(took, "rerankd on llama", options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--shape", choices=[*encoder.SHAPES, "builtin"], default="large")
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--words", type=int, help="words per document (default: 20 to 400)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--weights", choices=["full", "compressed"], default="full")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--whole", action="store_true", help="also measure HTTP requests to rerankd")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
