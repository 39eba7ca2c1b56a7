"""Measure how fast OpenVINO computes a causal model's prompt on this CPU (see backends/prompt_rate.py).

A program of its own, because the service does not import OpenVINO: `python -m
rerankd.backends.openvino.prompt_rate [--compressed] PRECISION …` prints the best rate of these precisions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from rerankd.backends.openvino.architectures.qwen3 import Qwen3
from rerankd.backends.openvino.layers import score_of
from rerankd.backends.openvino.precision import Precision
from rerankd.backends.openvino.runtime import config, ov
from rerankd.backends.prompt_rate import (
    FEED_FORWARD,
    HEADS,
    KV_HEADS,
    LAYERS,
    ROUNDS,
    TOKENS,
    WIDTH,
    gflops,
)
from rerankd.backends.worker.output_row import Output
from rerankd.formats.weights import Floats

_KEYS = {
    "embedding_length": WIDTH,
    "block_count": LAYERS,
    "attention.head_count": HEADS,
    "attention.head_count_kv": KV_HEADS,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "feed_forward_length": FEED_FORWARD,
}


class RandomWeights:
    """The layers' weights, with the methods of formats.weights.Weights that a Decoder calls: in Q8_0 if
    `compressed`, else in float32."""

    architecture = "qwen3"
    path = "random weights"
    names = ("token_embd.weight", "output_norm.weight", *(
        f"blk.{at}.{name}" for at in range(LAYERS) for name in Qwen3.tensors
    ))  # fmt: skip

    def __init__(self, *, compressed: bool) -> None:
        self._compressed = compressed
        self._random = np.random.default_rng(1)

    def key(self, name: str, default: Any = None) -> Any:
        return _KEYS.get(name, default)

    def array(self, name: str, shape: Sequence[int]) -> Floats:
        return np.full(shape, 0.03 if len(shape) > 1 else 1, np.float32)

    def stored(self, name: str, shape: Sequence[int]) -> tuple[None, str]:
        return None, "F32"

    def groups(self, name: str, rows: int, columns: int) -> tuple[Any, Floats] | None:
        if not self._compressed:
            return None
        numbers = self._random.integers(-127, 128, (rows, columns // 32, 32), np.int8)
        return numbers, np.full((rows, columns // 32, 1), 0.0003, np.float32)


def measure(precision: Precision, *, compressed: bool) -> float:
    """The rate in GFLOP/s for one thread."""
    decoder = Qwen3(RandomWeights(compressed=compressed), compressed=False)  # type: ignore[arg-type]
    model = decoder.graph(partial(score_of, Output(np.ones((1, WIDTH), np.float32))))
    compiled = ov.Core().compile_model(model, "CPU", config(1, precision))
    request = compiled.create_infer_request()
    half = WIDTH // HEADS // 2
    texts = 4
    inputs = {
        "embeddings": np.random.default_rng(2).normal(0, 1, (texts, TOKENS // texts, WIDTH)),
        "cos": np.ones((1, TOKENS // texts, half)),
        "sin": np.zeros((1, TOKENS // texts, half)),
        "mask": np.zeros((1, TOKENS // texts, TOKENS // texts)),
        **{f"prefix.{at}": np.zeros((0, KV_HEADS, 2 * half)) for at in range(2 * LAYERS)},
    }
    arrays: dict[str, Any] = {name: one.astype(np.float32) for name, one in inputs.items()}
    arrays["last"] = np.full((texts, 1), TOKENS // texts - 1, np.int64)
    for name, one in arrays.items():
        request.set_tensor(name, ov.Tensor(one))
    return gflops(min(_call(request) for _ in range(ROUNDS + 1)))


def _call(request: Any) -> float:
    started = time.perf_counter()
    request.infer()
    return time.perf_counter() - started


if __name__ == "__main__":
    flags = argparse.ArgumentParser(prog="rerankd.backends.openvino.prompt_rate", allow_abbrev=False)
    flags.add_argument("--compressed", action="store_true")
    flags.add_argument("precisions", nargs="+", choices=["f32", "bf16"])
    options = flags.parse_args()
    print(max(measure(one, compressed=options.compressed) for one in options.precisions))
