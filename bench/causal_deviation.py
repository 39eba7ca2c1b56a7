"""How far a causal LM's log-odds deviate from transformers in float32, on the same weights and token ids:

    python bench/causal_deviation.py --python /tmp/reference/bin/python

The model has Qwen3-Reranker-0.6B's shape and random weights: once in Q8_0, which OpenVINO keeps in 8 bits,
once in F16, where `weights = compressed` rounds them to 8 bits. Each row is one service, which answers over
HTTP. Deviations are in standard deviations of the query's log-odds in float32; tau is Kendall's, the mean of
the queries. Random weights show which arithmetic is closer, not how far a trained model's scores move.
`--python` has torch, transformers and gguf (see crossencoder.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import causal_lm
import gguf
import httpx
import models
import numpy as np
from programs import text
from scipy.stats import kendalltau

from rerankd import machine
from rerankd.backends.openvino import trial
from rerankd.benchmark import service
from rerankd.config import Settings
from rerankd.serving.prepare_model import prepare

_KINDS = gguf.GGMLQuantizationType
_OPENVINO = {"engine": "openvino", "weights": "full"}
_SIDES: dict[str, dict[str, Any]] = {
    "OpenVINO f32": _OPENVINO | {"precision": "f32"},
    "OpenVINO bf16": _OPENVINO | {"precision": "bf16"},
    "OpenVINO f32, compressed": _OPENVINO | {"precision": "f32", "weights": "compressed"},
    "OpenVINO bf16, compressed": _OPENVINO | {"precision": "bf16", "weights": "compressed"},
    "llama.cpp": {"engine": "llama"},
}
Asked = list[tuple[str, list[str]]]


async def compare(kind: gguf.GGMLQuantizationType, options: argparse.Namespace) -> None:
    """Print the rows of one file."""
    model = models.qwen3(options.folder, headed=False, kind=kind)
    asked: Asked = [
        (text(causal_lm.WORDS, 8, f"query {at}"), documents(at, options)) for at in range(options.queries)
    ]
    right = np.array(await asyncio.to_thread(reference, model, asked, options))
    each = right.std(axis=1, keepdims=True)
    print(f"{kind.name}: {right.shape} log-odds, standard deviations {each.ravel().round(3)}", flush=True)
    for name, more in _SIDES.items():
        if kind == _KINDS.Q8_0 and "compressed" in name:
            continue  # it is in 8 bits in any case
        found = np.array(await served(model, more, asked, options))
        apart = np.abs(found - right) / each
        tau = np.mean([kendalltau(*pair).statistic for pair in zip(found, right, strict=True)])
        print(f"| {name} | {apart.mean():.2g} | {apart.max():.2g} | {tau:.3f} |", flush=True)


def documents(query: int, options: argparse.Namespace) -> list[str]:
    """Documents of 10 words up to `--words`."""
    sizes = np.linspace(10, options.words, options.documents).astype(int)
    return [text(causal_lm.WORDS, int(size), f"{query} {at}") for at, size in enumerate(sizes)]


def reference(model: Path, asked: Asked, options: argparse.Namespace) -> list[list[float]]:
    """The log-odds by transformers in float32."""
    golden = json.loads((causal_lm.ROOT / "tests" / "golden" / "qwen3-headless.json").read_text())
    scoring = {key: golden[key] for key in ("template", "labels", "instruction")} | {"max_length": 2048}
    prepared = prepare(Settings(model=str(model), home=options.folder, scoring=scoring, force=True))
    inputs = trial.inputs(prepared.metadata, prepared.recipe, asked)
    rows = [{"ids": [one.whole.tolist() for one in row], "labels": golden["label_ids"]} for row in inputs]
    program = str(Path(__file__).with_name("reference.py"))
    argv = [options.python, program, str(model), "causal-f32", str(options.threads)]
    given = "".join(json.dumps(row) + "\n" for row in rows)
    done = subprocess.run(argv, input=given, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()[1:]]


async def served(
    model: Path, more: dict[str, Any], asked: Asked, options: argparse.Namespace
) -> list[list[float]]:
    """The raw scores by a service with these settings."""
    with tempfile.TemporaryDirectory(prefix="rb-") as name:
        folder = Path(name)
        settings = more | {"home": str(folder / "home")}
        config = causal_lm.write_settings(folder / "r.toml", model, options, settings)
        running = service.running(["--config", str(config)], os.environ, folder / "log", 300)
        async with running as (url, _), httpx.AsyncClient(base_url=url, timeout=900, trust_env=False) as http:
            return [await causal_lm.ask(http, {"query": query, "documents": texts}) for query, texts in asked]


async def main(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    print(machine.cpu_name())
    print("| | mean | max | tau |\n|---|---|---|---|")
    for kind in (_KINDS.Q8_0, _KINDS.F16):
        await compare(kind, options)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--python", required=True, help="Python of an environment with torch and transformers"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--words", type=int, default=80)
    parser.add_argument("--threads", type=int, default=machine.read().cores)
    asyncio.run(main(parser.parse_args()))
