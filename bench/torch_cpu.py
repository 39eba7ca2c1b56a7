"""The PyTorch backend against sentence-transformers' own `predict` on a CPU: python bench/torch_cpu.py

All sides score the same texts in float32 with the same number of threads, in alternation, in one run:
`predict` (which sorts by length, 32 pairs a batch), rerankd's worker over its socket with the service's
tokenizing, and rerankd over HTTP. Models have random weights in the shape of ms-marco-MiniLM-L6, of
bge-reranker-base, of ettin-32m, and of Qwen3-0.6B with 4 of its 28 layers; the vocabularies are those of the
golden models. Documents have 20 to 200 words, or `--words`. The last column is the largest difference of a
raw score from `predict`.

It needs the environment of `make test-torch`: .venv-torch/bin/python bench/torch_cpu.py
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
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests" / "faults")]
sys.path.append(str(Path(__file__).parents[1] / "tests"))

import crossencoder
import engines
from served import service

import checkpoints
from rerankd.backends.base import Batch
from rerankd.config import Settings
from rerankd.service import Reranker
from support import golden, inputs

_ENCODER = {"num_hidden_layers": 6, "hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 12}
_BASE = {"num_hidden_layers": 12, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
_ETTIN = {"num_hidden_layers": 10, "hidden_size": 384, "intermediate_size": 576, "num_attention_heads": 6}
_QWEN = {
    "num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 2048,
}  # fmt: skip
# The golden checkpoint whose tokenizer and class it has, and the sizes.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "minilm": ("bert-pairs", _ENCODER | {"max_position_embeddings": 512}),
    "bge-base": ("xlmr-head", _BASE | {"max_position_embeddings": 514}),
    "ettin-32m": (
        "modernbert-head",
        _ETTIN | {"layer_types": None, "local_attention": 128, "max_position_embeddings": 512},
    ),
    "qwen3": ("qwen3-headless", _QWEN | {"layer_types": None}),
}


def make(folder: Path, shape: str) -> Path:
    """The folder of a checkpoint, which is created if it is missing."""
    name, sizes = SHAPES[shape]
    target = folder / f"torch-cpu-{shape}"
    if target.exists():
        return target
    part = Path(tempfile.mkdtemp(dir=folder))
    is_causal = shape == "qwen3"
    made = (
        checkpoints.causal(part, *golden(name)["label_ids"])
        if is_causal
        else checkpoints.copy(name, part / "m")
    )
    checkpoints.edit(made / "config.json", **sizes, dtype="float32")
    checkpoints.edit(made / "tokenizer_config.json", model_max_length=512)
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.AutoConfig.from_pretrained(made)
    kind = getattr(transformers, config.architectures[0])
    kind(config).float().save_pretrained(made)
    return made.rename(target)


async def worker(reranker: Reranker, query: str, documents: list[str]) -> list[float]:
    engine = reranker.state.engine
    assert engine is not None
    return (await engine.score(Batch(tuple(await inputs(reranker, query, documents))))).values


async def run(options: argparse.Namespace, shape: str) -> None:
    model = make(options.folder, shape)
    serving = {
        "model": str(model), "engine": "torch", "device": "cpu", "precision": options.precision,
        "threads": options.threads, "force": True, "cache_entries": 0,
    }  # fmt: skip
    took: dict[str, list[float]] = {"predict": [], "worker": [], "HTTP": []}
    apart = 0.0
    async with AsyncExitStack() as stack:
        name = stack.enter_context(tempfile.TemporaryDirectory(prefix="rb"))
        (home := Path(name, "h")).mkdir()
        options.python = sys.executable
        predict = await crossencoder.reference(model, "torch-f32", options, stack)
        own = Settings.model_validate(serving | {"home": Path(name)})
        reranker = await stack.enter_async_context(Reranker(own))
        it = stack.enter_context(service(home, real=True, request_timeout_s=3600, **serving))
        http = httpx.AsyncClient(base_url=it.url, timeout=None, trust_env=False)
        stack.push_async_callback(http.aclose)
        for number in range(options.rounds + 1):  # the first one is a warm-up
            query, documents = engines.texts(options, number, longest=200)
            seconds, values = [], []
            for side in took:
                started = time.perf_counter()
                if side == "predict":
                    values.append(await predict(query, documents))
                elif side == "worker":
                    values.append(await worker(reranker, query, documents))
                else:
                    body = {"query": query, "documents": documents}
                    (await http.post("/v1/rerank", json=body)).raise_for_status()
                seconds.append(time.perf_counter() - started)
            apart = max(apart, float(np.abs(np.subtract(*values)).max()))
            if number:
                for side, one in zip(took, seconds, strict=True):
                    took[side].append(one)
    tell(shape, took, apart, options)


def tell(shape: str, took: dict[str, list[float]], apart: float, options: argparse.Namespace) -> None:
    row: dict[str, Any] = {"shape": shape}
    row["pairs/s"] = {
        side: round(options.documents / statistics.median(one), 1) for side, one in took.items()
    }
    for side in ("worker", "HTTP"):
        ratios = sorted(one / other for one, other in zip(took["predict"], took[side], strict=True))
        row[side] = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    print(json.dumps(row | {"largest difference": float(f"{apart:.2g}")}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "rerankd-bench")
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=[*SHAPES])
    parser.add_argument("--documents", type=int, default=64)
    parser.add_argument("--words", type=int, help="words per document (default: 20 to 200)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for shape in options.shapes:
        asyncio.run(run(options, shape))


if __name__ == "__main__":
    main()
