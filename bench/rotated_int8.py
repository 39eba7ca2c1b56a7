"""An experiment: int8 products with one scale per row and per token, after an orthogonal rotation.

    python -m pip install onnx onnxruntime
    python bench/rotated_int8.py accuracy FOLDER   # FOLDER as in trained.py; also the built-in e5
    python bench/rotated_int8.py speed             # Qwen3-Reranker-0.6B's shape, random weights

x Wᵀ = (x R)(W R)ᵀ for an orthogonal R, and x R has no outliers, so a single scale per token suffices (QuaRot,
arXiv:2404.00456). The graphs run in ONNX Runtime: weights in int8, activations in uint8 with zero point 128,
`MatMulIntegerToFloat`. Where the rotation happens:

- pre-norm models with RMSNorm (Llama, Qwen3): in the weights. The norms' gains move to the matrices that read
  them; embeddings, these matrices, and the rows of `o` and `down` are rotated. RMSNorm commutes with R.
- Gemma 3 has a norm with gains between `o` and the residual stream, and BERT's residual stream contains the
  gains and biases of its norms. Neither commutes with R, so the inputs of products are rotated at run time,
  in blocks of a power of two.
- In all models, values are rotated within each head in the weights of `v` and `o`, and the input of `down` is
  rotated at run time, because a nonlinear function comes before it.

AVX2 adds two neighbouring products u8 × s8 in 16 bits with saturation. So a row's scale keeps the positive
and the negative parts of each pair of neighbours at 127 or less: 255 · 127 < 2^15, and every sum is exact.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import causal_lm
import httpx
import models
import numpy as np
import trained
from numpy.typing import NDArray
from programs import text
from rotated_graph import Floats, Graph, Model, body, pair_scale

from rerankd import machine
from rerankd.backends.openvino import trial
from rerankd.benchmark import service
from rerankd.config import Settings
from rerankd.errors import EngineStartFailed
from rerankd.evaluation.collection import EVERYDAY, read
from rerankd.serving.prepare_model import prepare

_E5 = {"method": "embedding", "pooling": "mean", "query_prefix": "query: ", "document_prefix": "passage: "}
_F32, _Q8_0 = trained.KINDS.F32, trained.KINDS.Q8_0
Ids = NDArray[np.int32]
States = Callable[[Floats], Floats]


def row_scale(matrix: Floats) -> Floats:
    """The scale [rows, 1] that uses all of 8 bits."""
    return np.maximum(np.abs(matrix).max(1, keepdims=True), 1e-30) / 127


GRAPHS: dict[str, tuple[str, bool, Any]] = {
    "f32": ("f32", False, None),
    "f32, rotated": ("f32", True, None),
    "int8": ("int8", False, row_scale),
    "int8, pair-safe": ("int8", False, pair_scale),
    "int8, rotated": ("int8", True, row_scale),
    "int8, pair-safe, rotated": ("int8", True, pair_scale),
}


def states(path: Path, kind: str, threads: int) -> tuple[Model, States]:
    """A model of a file and the function that computes its states."""
    arithmetic, is_rotated, scale = GRAPHS[kind]
    model, graph = Model(path), Graph(arithmetic, is_rotated=is_rotated, scale=scale)
    if is_rotated:
        model.fold()
    return model, graph.session(body(graph, model), model.width, threads)


def wrong_sums() -> str:
    """How many sums of a product clip on this CPU, for weights and inputs that are all the largest."""
    found = []
    for kind in ("int8", "int8, pair-safe"):
        arithmetic, _, scale = GRAPHS[kind]
        graph, matrix = Graph(arithmetic, is_rotated=False, scale=scale), np.ones((64, 64), np.float32)
        (result,) = graph.linear(graph.shape("x", -1, 64), matrix, turn=False)
        sums = graph.session(graph.op("Reshape", result, graph.op("Shape", "x")), 64, 1)(matrix[None])
        found.append(f"{kind}: {np.mean(np.abs(sums - 64) > 1):.0%}")
    return "wrong sums of an adversarial product: " + ", ".join(found)


def judge(model: Model, run: States, labels: Sequence[int]) -> Callable[[Ids], float]:
    """The function that computes the log-odds of two labels after token ids."""
    table, gain = model.get("token_embd"), model.get("output_norm")
    read_by = gain * (table[labels[0]] - table[labels[1]])
    embed = table * np.float32(model.width**0.5) if model.kind == "gemma3" else table
    if model.turn is not None:
        embed, read_by = embed @ model.turn, read_by @ model.turn

    def score(ids: Ids) -> float:
        state = run(embed[ids][None])[0, -1]
        return float(state @ read_by / np.sqrt(np.mean(state**2) + model.epsilon))

    return score


def encoder(model: Model, run: States) -> Callable[[Ids], Floats]:
    """The function that computes the vector of a text, of length 1."""
    table, places, types = (model.get(name) for name in ("token_embd", "position_embd", "token_types"))

    def vector(ids: Ids) -> Floats:
        mean = run((table[ids] + places[: len(ids)] + types[0])[None])[0].mean(0)
        return mean / np.linalg.norm(mean)

    return vector


async def accuracy(options: argparse.Namespace) -> None:
    """Print how far each way of computing is from float32, for each model."""
    collection = read(EVERYDAY)
    best = trained.candidates(collection, options.queries, options.documents)
    asked = [
        (collection.queries[q], [collection.documents[one] for one in found]) for q, found in best.items()
    ]
    for name in options.models:
        scoring = _E5 if name == "e5" else trained.SCORING
        own = (
            e5(options.folder)
            if name == "e5"
            else trained.package_file(name, options.packages, options.folder)
        )
        whole, eight = trained.rewritten(own, _F32), trained.rewritten(own, _Q8_0)
        prepared = prepare(Settings(model=str(whole), home=options.folder, scoring=scoring, force=True))
        given = await asyncio.to_thread(trial.inputs, prepared.metadata, prepared.recipe, asked)
        right: trained.Rows | None = None
        for kind in options.graphs or GRAPHS:
            model, run = states(whole, kind, options.threads)
            if name == "e5":
                vector = encoder(model, run)
                found = np.array(
                    [[vector(row[0].question.ids) @ vector(one.whole) for one in row] for row in given]
                )
            else:
                labels = [prepared.metadata.token_id(label) or 0 for label in prepared.recipe.labels]
                score = judge(model, run, labels)
                found = np.array([[score(one.whole) for one in row] for row in given])
            if right is None:
                right = found
                print(
                    f"\n{name}: {right.shape}, a query's standard deviation {right.std(axis=1).mean():.3g}\n"
                )
                print("| | mean, max | tau, min | nDCG@10 |\n|---|---|---|---|")
            print(trained.row(kind, found, right, trained.ndcg(collection, best, found)), flush=True)
        for side in trained.sides():
            if side.name not in options.services:
                continue
            try:
                found = await trained.served(
                    eight if side.file == "q8_0" else whole, side.settings, asked, scoring
                )
            except EngineStartFailed as error:
                print(f"| {side.name} | {str(error).splitlines()[-1].strip()} |", flush=True)
                continue
            print(trained.row(side.name, found, right, trained.ndcg(collection, best, found)), flush=True)


def e5(folder: Path) -> Path:
    """A copy of the built-in model's file under a name of its own, so that no recipe of its own applies."""
    target = folder / "e5.gguf"
    if not target.exists():
        target.write_bytes(prepare(Settings(model="builtin:e5")).path.read_bytes())
    return target


async def speed(options: argparse.Namespace) -> None:
    """Print what 16 documents take: 4 calls of 4 texts of 112 tokens, and the prefix of 78; and the same
    documents in services on llama.cpp and OpenVINO. All in turns, one new query a round."""
    file = models.qwen3(options.folder, headed=False)
    random, sides = np.random.default_rng(1), {}
    for kind in options.graphs or ("int8, pair-safe", "int8, pair-safe, rotated"):
        model, run = states(file, kind, options.threads)
        own, prefix = (
            random.standard_normal((*shape, model.width), np.float32) for shape in ((4, 112), (1, 78))
        )
        sides[f"ONNX Runtime {kind}"] = partial(computed, run, [prefix, own, own, own, own])
    async with contextlib.AsyncExitStack() as stack:
        for side in trained.sides():
            if side.name not in options.services:
                continue
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="rb-")))
            settings = {**side.settings, "home": str(folder / "home"), "request_timeout_s": 900}
            config = causal_lm.write_settings(folder / "r.toml", file, options, settings)
            before = {*causal_lm.children(os.getpid())}
            running = service.running(["--config", str(config)], os.environ, folder / "log", 300)
            url, _ = await stack.enter_async_context(running)
            client = httpx.AsyncClient(base_url=url, timeout=900, trust_env=False)
            http = await stack.enter_async_context(client)
            (pid,) = {*causal_lm.children(os.getpid())} - before
            sides[f"service, {side.name}"] = partial(answered, http, pid)
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for at in range(options.rounds + 1):  # the first one warms up
            for name, side in sides.items():
                started = time.perf_counter()
                of_cpu = await side(at)
                took[name].append((time.perf_counter() - started, of_cpu))
                print(f"{name:40} {took[name][-1][0]:6.2f} s, {of_cpu:6.2f} s of CPU", flush=True)
    for name, rounds in took.items():
        wall, of_cpu = (min(column) for column in zip(*rounds[1:], strict=True))
        print(f"| {name} | {16 / wall:.2f} | {16 / of_cpu:.2f} |")


async def computed(run: States, calls: Sequence[Floats], at: int) -> float:
    """Run the calls; returns the CPU time."""
    started = time.process_time()
    for call in calls:
        await asyncio.to_thread(run, call)
    return time.process_time() - started


async def answered(http: httpx.AsyncClient, pid: int, at: int) -> float:
    """Score 16 new documents for a new query; returns the CPU time of the service and its engine."""
    started = causal_lm.cpu_s(pid)
    documents = [text(causal_lm.WORDS, 50, f"{at} {one}") for one in range(16)]
    await causal_lm.ask(http, {"query": text(causal_lm.WORDS, 8, f"query {at}"), "documents": documents})
    return causal_lm.cpu_s(pid) - started


async def main(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"{machine.cpu_name()}; {wrong_sums()}")
    await {"accuracy": accuracy, "speed": speed}[options.part](options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["accuracy", "speed"])
    parser.add_argument(
        "packages", type=Path, nargs="?", default=Path(), help="the folder of pip install --target"
    )
    parser.add_argument("--models", nargs="+", default=["smollm2", "gemma3", "e5"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--queries", type=int, default=8)
    parser.add_argument("--documents", type=int, default=20)
    parser.add_argument("--threads", type=int, default=machine.read().cores)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--graphs", nargs="*", choices=[*GRAPHS], default=[])
    parser.add_argument(
        "--services", nargs="*", default=["llama.cpp, Q8_0 file", "OpenVINO f32", "OpenVINO bf16"]
    )
    asyncio.run(main(parser.parse_args()))
