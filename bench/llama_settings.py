"""llama.cpp's own settings on this CPU, each beside those that rerankd chooses:

    python bench/llama_settings.py [--files qwen3-q8_0 encoder-f16 …] [--rounds 3]

Each row is one engine as the product starts it (bundled llama.cpp, launch.argv), with the changes named in
the row. All engines of a file run at the same time and score the same texts in turns, in calls of the
product's size, two calls at a time. `times as fast` is the median ratio of the rounds by wall time and by CPU
time of the engine, `moved` the largest change of a raw score. With `--threads 1` the CPU time is right on a
busy machine. Random weights of real size: causal models of
Qwen3-Reranker-0.6B's shape, encoders of bge-reranker-v2-m3's.

Changes are flags that the bundled program has, or fields of xllamacpp's CommonParams; with `a.b`, of its
field a. The file itself is that program for one engine: `--serve '{"field": value}' FLAGS`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import causal_lm
import encoder
import gguf
import models
from programs import text

from rerankd import machine
from rerankd.backends.base import Batch, Engine, Offer
from rerankd.backends.llama import bundled
from rerankd.backends.llama.backend import LlamaBackend, LlamaOffer
from rerankd.backends.llama.options import LlamaOptions
from rerankd.config import Settings
from rerankd.process.child import Child
from rerankd.scoring.inputs import Reader
from rerankd.serving.model_tokenizer import ModelVocabulary, reader
from rerankd.serving.prepare_model import Model, prepare

Changes = Mapping[str, Any]
_CAUSAL: dict[str, Changes] = {
    "as rerankd starts it": {},
    "ubatch 256": {"--ubatch-size": 256},
    "ubatch 1024": {"--ubatch-size": 1024},
    "4 slots": {"--parallel": 4, "--ctx-size": 4 * 2304},
    "flash attention on": {"--flash-attn": "on"},
    "flash attention off": {"--flash-attn": "off"},
    "KV cache F32, no flash attention": {
        "--flash-attn": "off",
        "--cache-type-k": "f32",
        "--cache-type-v": "f32",
    },
    "weights not repacked": {"no_extra_bufts": True},
    "file not memory-mapped": {"load_mode": "NONE"},
    "1 thread more": {"--threads": +1},
}
_ENCODER: dict[str, Changes] = {
    "as rerankd starts it": {},
    "1 slot": {"--parallel": 1, "--ctx-size": 1024},
    "2 slots": {"--parallel": 2, "--ctx-size": 2048},
    "8 slots": {"--parallel": 8, "--ctx-size": 8192},
    "flash attention on": {"--flash-attn": "on"},
    "flash attention off": {"--flash-attn": "off"},
    "weights not repacked": {"no_extra_bufts": True},
    "file not memory-mapped": {"load_mode": "NONE"},
    "1 thread more": {"--threads": +1},
}
_KINDS = gguf.GGMLQuantizationType
FILES = {f"qwen3-{kind.lower()}": kind for kind in ("Q8_0", "Q4_K", "Q4_0", "F16")} | {
    "encoder-f16": "large",
    "encoder-q8_0": "large-q8",
    "encoder-q4_k": "large-q4",
}
# Tokens of a call, as BatchPolicy.tokens of the backend.
_CALL = 512


def serve(changes: Changes, flags: list[str]) -> None:
    """Run the bundled program with changed parameters."""
    made = bundled.params

    def params(options: argparse.Namespace) -> Any:
        import xllamacpp

        found = made(options)
        for name, value in changes.items():
            *path, last = name.split(".")
            holder = found
            for one in path:
                holder = getattr(holder, one)
            if name == "load_mode":
                value = getattr(xllamacpp.llama_load_mode, f"LLAMA_LOAD_MODE_{value}")
            setattr(holder, last, value)
        return found

    bundled.params = params
    sys.exit(bundled.main(flags))


def prepared(name: str, options: argparse.Namespace) -> Model:
    """The model of a file."""
    if name.startswith("encoder"):
        path, more = encoder.make(options.folder, FILES[name]), {}
    else:
        path = models.qwen3(options.folder, headed=False, kind=_KINDS[FILES[name]])
        prompt = json.loads((causal_lm.ROOT / "tests" / "golden" / "qwen3-headless.json").read_text())
        scoring = {key: prompt[key] for key in ("template", "labels", "instruction")}
        more = {"scoring": scoring | {"max_length": 2048}}
    return prepare(Settings(model=str(path), home=options.folder, force=True, **more))


async def started(
    offer: LlamaOffer, changes: Changes, socket: Path, log: Path, stack: AsyncExitStack
) -> tuple[Engine, int]:
    """Start an engine with these changes; return its client and its process id."""
    launched = offer.backend.launch(offer, (), (), socket)
    flags = [*launched.argv[len(offer.binary.program) :]]
    for flag, value in changes.items():
        if flag.startswith("--"):
            word = str(offer.spec.threads + value if flag == "--threads" else value)
            if flag in flags:
                flags[flags.index(flag) + 1] = word
            else:
                flags += [flag, word]
    fields = {name: value for name, value in changes.items() if not name.startswith("--")}
    argv = [sys.executable, __file__, "--serve", json.dumps(fields), *flags]
    child = await Child.start(argv, log, {**launched.environment, **os.environ})
    stack.push_async_callback(child.stop, 2)
    engine = launched.connect(socket)
    stack.push_async_callback(engine.close)
    while not await engine.is_ready():
        assert child.exit_code is None, log.read_text()[-3000:]
        await asyncio.sleep(0.05)
    await engine.prepare()
    return engine, child.pid


async def scored(engine: Engine, read_by: Reader, query: str, documents: list[str]) -> list[float]:
    """Score documents in calls of the product's size, two at a time."""
    inputs = await read_by.plain(query, documents)
    calls, tokens = [[]], 0
    for one in inputs:
        if calls[-1] and tokens + one.tokens > _CALL:
            calls, tokens = [*calls, []], 0
        calls[-1].append(one)
        tokens += one.tokens
    two = asyncio.Semaphore(2)

    async def call(batch: list[Any]) -> list[float]:
        async with two:
            return list((await engine.score(Batch(tuple(batch)))).values)

    return [value for values in await asyncio.gather(*map(call, calls)) for value in values]


async def compare(name: str, options: argparse.Namespace) -> None:
    """Print the rows of one file."""
    model = await asyncio.to_thread(prepared, name, options)
    backend = LlamaBackend()
    settings = LlamaOptions(gpu_layers=0)
    survey = replace(backend.survey(settings, options.folder), installed=(), own=None, used="")
    offer: Any = backend.offer(replace(model.spec, threads=options.threads), settings, survey)
    assert isinstance(offer, Offer), offer
    rows = _ENCODER if name.startswith("encoder") else _CAUSAL
    took: dict[str, list[tuple[float, float]]] = {row: [] for row in rows}
    moved = dict.fromkeys(rows, 0.0)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rb-")))
        running: dict[str, tuple[Engine, int, Reader]] = {}
        for at, (row, changes) in enumerate(rows.items()):
            engine, pid = await started(offer, changes, folder / f"{at}.sock", folder / f"{at}.log", stack)
            tokenizer: Any = engine
            if not offer.capabilities.tokenizes:
                tokenizer = await ModelVocabulary(model.metadata).tokenizer()
            running[row] = engine, pid, reader(offer, tokenizer)
        for number in range(options.rounds + 1):
            query = text(causal_lm.WORDS, 8, f"query {number}")
            documents = [
                text(causal_lm.WORDS, options.words, f"{number} {at}") for at in range(options.documents)
            ]
            exact: list[float] = []
            for row, (engine, pid, read_by) in running.items():
                cpu, begun = causal_lm.cpu_s(pid), time.perf_counter()
                values = await scored(engine, read_by, query, documents if number else documents[:2])
                spent = time.perf_counter() - begun, causal_lm.cpu_s(pid) - cpu
                exact = exact or values
                if number:  # the first round only warms up
                    took[row].append(spent)
                    apart = max(abs(one - other) for one, other in zip(exact, values, strict=True))
                    moved[row] = max(moved[row], apart)
                    print(f"{row}: {spent[0]:.2f} s, {spent[1]:.2f} s of CPU, moved {apart:.2g}", flush=True)
        memory = {row: causal_lm.rss_mib(pid)[0] for row, (_, pid, _) in running.items()}
    base = took["as rerankd starts it"]
    rate = options.documents / statistics.median(wall for wall, _ in base)
    print(f"\n{name}: {rate:.2f} pairs/s as rerankd starts it", flush=True)
    print("| | times as fast: wall, CPU | moved | RSS MiB |\n|---|---|---|---|")
    for row, times in took.items():
        ratios = [
            statistics.median(one[at] / other[at] for one, other in zip(base, times, strict=True))
            for at in (0, 1)
        ]
        print(f"| {row} | {ratios[0]:.2f}, {ratios[1]:.2f} | {moved[row]:.2g} | {memory[row]} |", flush=True)


async def main(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    bundled_by = f"xllamacpp {version('xllamacpp')}"
    print(f"{machine.cpu_name()}, {options.threads} threads, {bundled_by}", flush=True)
    for name in options.files:
        await compare(name, options)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(json.loads(sys.argv[2]), sys.argv[3:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--files", nargs="+", choices=FILES, default=list(FILES))
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--words", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    asyncio.run(main(parser.parse_args()))
