"""OpenVINO against sentence-transformers' CrossEncoder and ONNX Runtime, on the same safetensors:

    python -m venv /tmp/reference
    /tmp/reference/bin/pip install torch sentence-transformers onnx onnxscript onnxruntime
    python bench/crossencoder.py --python /tmp/reference/bin/python

All sides score the same texts with the same number of threads, in alternation, in one run. The model is a
random BERT cross-encoder with the shape of ms-marco-MiniLM-L6 (`--shape minilm`) or BERT-large (`large`).
Documents have 20 to 200 words, or `--words`; the small vocabulary splits each word into two tokens. The last
column is the largest difference of a logit from the first side.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests" / "faults")]
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import engines

import checkpoints
from rerankd.backends.base import Batch
from rerankd.config import Settings
from rerankd.serving.prepare_model import prepare

Ask = Callable[[str, list[str]], Awaitable[list[float]]]
"""Returns the raw scores of documents for a query."""
# Layers, width, width of the feed-forward part, heads.
SHAPES = {"minilm": (6, 384, 1536, 12), "large": (24, 1024, 4096, 16)}
WINDOW = 512


def make(folder: Path, shape: str) -> Path:
    """Return the folder of a checkpoint; create it if it is missing."""
    layers, width, hidden, heads = SHAPES[shape]
    target = folder / f"bert-pairs-{layers}x{width}"
    if target.exists():
        return target
    part = target.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    checkpoints.copy(
        "bert-pairs",
        part,
        num_hidden_layers=layers,
        hidden_size=width,
        intermediate_size=hidden,
        num_attention_heads=heads,
        max_position_embeddings=WINDOW,
        dtype="float32",
    )
    checkpoints.edit(part / "tokenizer_config.json", model_max_length=WINDOW)
    vocabulary = json.loads((part / "config.json").read_text())["vocab_size"]
    sizes = names(layers, width, hidden, vocabulary)
    checkpoints.write(part / "model.safetensors", weights(sizes))
    return part.rename(target)


def names(layers: int, width: int, hidden: int, vocabulary: int) -> dict[str, tuple[int, ...]]:
    """Return the names and shapes of the tensors of a BertForSequenceClassification."""
    sizes: dict[str, tuple[int, ...]] = {
        "bert.embeddings.word_embeddings.weight": (vocabulary, width),
        "bert.embeddings.position_embeddings.weight": (WINDOW, width),
        "bert.embeddings.token_type_embeddings.weight": (2, width),
    }

    def linear(name: str, rows: int, columns: int) -> None:
        sizes.update({f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)})

    def norm(name: str) -> None:
        sizes.update({f"{name}.LayerNorm.weight": (width,), f"{name}.LayerNorm.bias": (width,)})

    norm("bert.embeddings")
    for layer in (f"bert.encoder.layer.{at}" for at in range(layers)):
        for part in ("attention.self.query", "attention.self.key", "attention.self.value"):
            linear(f"{layer}.{part}", width, width)
        linear(f"{layer}.attention.output.dense", width, width)
        norm(f"{layer}.attention.output")
        linear(f"{layer}.intermediate.dense", hidden, width)
        linear(f"{layer}.output.dense", width, hidden)
        norm(f"{layer}.output")
    linear("bert.pooler.dense", width, width)
    linear("classifier", 1, width)
    return sizes


def weights(sizes: dict[str, tuple[int, ...]]) -> checkpoints.Tensors:
    """Return random float32 weights."""
    draw = np.random.default_rng(1)
    return {
        name: ("F32", list(shape), (draw.normal(0, 0.05, shape) + is_gain).astype(np.float32).tobytes())
        for name, shape in sizes.items()
        for is_gain in ["LayerNorm.weight" in name]
    }


async def worker(model: Path, options: argparse.Namespace, folder: Path, stack: AsyncExitStack) -> Ask:
    found = prepare(Settings(model=str(model), home=folder))
    engine, read_by = await engines.started_worker(found, options, folder, stack)

    async def ask(query: str, documents: list[str]) -> list[float]:
        inputs = await read_by.plain(query, documents)
        return (await engine.score(Batch(tuple(inputs)))).values

    return ask


async def reference(model: Path, side: str, options: argparse.Namespace, stack: AsyncExitStack) -> Ask:
    program = str(Path(__file__).with_name("reference.py"))
    process = await asyncio.create_subprocess_exec(
        options.python, program, str(model), side, str(options.threads),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        limit=2**24,
    )  # fmt: skip
    assert process.stdin is not None and process.stdout is not None
    stack.push_async_callback(process.wait)
    stack.callback(process.stdin.close)
    requests, answers = process.stdin, process.stdout
    assert await answers.readline(), f"{side} does not start; run {program} by hand to see the error"

    async def ask(query: str, documents: list[str]) -> list[float]:
        requests.write(json.dumps({"query": query, "documents": documents}).encode() + b"\n")
        found: list[float] = json.loads(await answers.readline())
        return found

    return ask


async def run(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    model = make(options.folder, options.shape)
    took: dict[str, list[float]] = {}
    apart: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="rb") as name:
        async with AsyncExitStack() as stack:
            sides = {side: await reference(model, side, options, stack) for side in options.sides}
            sides["OpenVINO"] = await worker(model, options, Path(name), stack)
            for number in range(options.rounds + 1):  # the first one is a warm-up
                query, documents = engines.texts(options, number, longest=200)
                right: list[float] = []
                for side, ask in sides.items():
                    started = time.perf_counter()
                    values = await ask(query, documents)
                    if number:
                        took.setdefault(side, []).append(time.perf_counter() - started)
                    right = right or values
                    apart[side] = max(apart.get(side, 0.0), float(np.abs(np.subtract(values, right)).max()))
    for side, seconds in took.items():
        ratios = [one / other for one, other in zip(seconds, took["OpenVINO"], strict=True)]
        print(
            f"{side:11s} {options.documents / statistics.median(seconds):8.1f} documents/s   OpenVINO is "
            f"{statistics.median(ratios):5.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})   "
            f"largest difference {apart[side]:.2g}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", required=True, help="Python of an environment with the reference libraries"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--shape", choices=SHAPES, default="minilm")
    parser.add_argument("--sides", nargs="+", default=["torch-f32", "torch-bf16", "ort-int8"])
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--words", type=int, help="words per document (default: 20 to 200)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.set_defaults(weights="full")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
