"""The PyTorch network on the machine's card, without the service: python bench/torch_card.py [SHAPE …]

Random weights of real shapes, made on the device: no files and no network. It takes about four minutes on a
card; on a CPU it computes tiny shapes, which checks the script alone. It prints a line of JSON for each
shape, kind of weights, and code (eager, compiled): pairs/s with the next pass one ahead, the share of the
peak that a square matrix product reaches here, and differences from float32 with padded attention.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rerankd.backends.torch import attention, budget, compiled, load
from rerankd.backends.torch.architectures import ARCHITECTURES
from rerankd.backends.torch.heads import Head
from rerankd.backends.torch.network import Loaded, Network
from rerankd.backends.worker.passes import Reading

IS_CARD = torch.cuda.is_available()
DEVICE = torch.device("cuda:0" if IS_CARD else "cpu")
HALF = torch.bfloat16
SHAPES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "Qwen3-0.6B": ("qwen3", {"embedding_length": 1024, "feed_forward_length": 3072, "block_count": 28}),
    "BERT-large": ("bert", {"embedding_length": 1024, "feed_forward_length": 4096, "block_count": 24}),
    "Qwen3-8B": ("qwen3", {"embedding_length": 4096, "feed_forward_length": 12288, "block_count": 36}),
    "ettin-150m": ("modern-bert", {"embedding_length": 768, "feed_forward_length": 1152, "block_count": 22}),
    "ettin-32m": ("modern-bert", {"embedding_length": 384, "feed_forward_length": 576, "block_count": 10}),
}
KINDS = {"Qwen3-0.6B": ("bf16", "fp8", "int8"), "Qwen3-8B": ("bf16", "fp8", "int8")}
TINY = {"embedding_length": 128, "feed_forward_length": 128, "block_count": 2}
VOCABULARY, PREFIX, OWN, DOCUMENTS = 30_000, 78, 112, 100


class Shape:
    """A header of a model's file, as an architecture reads it."""

    def __init__(self, architecture: str, sizes: Mapping[str, Any]) -> None:
        self.architecture, self.values = architecture, {"tokenizer.ggml.model": "bert"}
        heads = sizes["embedding_length"] // 64
        more = {"attention.key_length": 128} if architecture == "qwen3" else {}
        is_large = sizes["embedding_length"] == 4096
        self._keys = {
            "attention.head_count": 32 if is_large else heads,
            "attention.head_count_kv": 8 if heads > 8 else heads // 2,
            "attention.layer_norm_epsilon": 1e-5,
            "attention.layer_norm_rms_epsilon": 1e-6,
            "attention.sliding_window": 128,
            "context_length": 512,
            "rope.freq_base": 160000.0,
            **more,
            **sizes,
        }

    def key(self, name: str, default: Any = None) -> Any:
        return self._keys.get(name, default)

    def has(self, name: str) -> bool:
        return False

    def rows(self, name: str) -> int:
        return VOCABULARY


def loaded(architecture: str, sizes: Mapping[str, Any], dtype: torch.dtype) -> Loaded:
    """Random weights, the same ones for each dtype."""
    shape: Any = Shape(architecture, sizes)
    made = ARCHITECTURES[architecture](shape)
    random = torch.Generator(DEVICE).manual_seed(0)

    def named(parts: Any) -> dict[str, torch.Tensor]:
        found = {}
        for name, joined in parts.items():
            rows = sum(one.shape[0] for one in joined)
            size = (rows, *joined[0].shape[1:])
            weight = torch.randn(size, generator=random, device=DEVICE) * 0.02
            found[f"{name}.weight"] = (weight + (len(size) == 1)).to(dtype)
        return found

    head = Head(
        made.head_pooling,
        (("dense", "labels", ""),),
        {"labels.weight": torch.randn(1, made.state_width, generator=random, device=DEVICE)},
        0.0,
    )
    outside = named(made.tensors)
    layers = [named(made.layer_tensors) for _ in made.attentions]
    return Loaded(made, outside, layers, head, DEVICE, VOCABULARY)


def readings(has_prefix: bool) -> list[Reading]:
    random = np.random.default_rng(0)
    shared = random.integers(1000, VOCABULARY, PREFIX)
    lengths = random.integers(OWN // 2, OWN * 3 // 2, DOCUMENTS if IS_CARD else 4)
    return [
        Reading(
            np.concatenate((shared, random.integers(1000, VOCABULARY, one))).astype(np.int32), PREFIX, PREFIX
        )
        if has_prefix
        else Reading(random.integers(1000, VOCABULARY, one).astype(np.int32), one)
        for one in lengths
    ]


def seconds(network: Network, some: Sequence[Reading], rounds: int = 7) -> float:
    """The median time of all the readings in one pass and its prefix."""
    times = []
    for _ in range(rounds + 1):
        network.prefixes.clear()
        start = time.perf_counter()
        network.start(some)()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[rounds // 2]


def ahead(network: Network, some: Sequence[Reading], count: int = 30) -> tuple[float, float]:
    """Passes one ahead, as a worker runs them: seconds a pass, and those until it is started."""
    host, begun, waits = 0.0, time.perf_counter(), []
    for _ in range(count):
        network.prefixes.clear()
        start = time.perf_counter()
        waits.append(network.start(some))
        host += time.perf_counter() - start
        if len(waits) > 1:
            waits.pop(0)()
    waits.pop()()
    return (time.perf_counter() - begun) / count, host / count


def peak() -> float:
    """Operations per second of a square product in half precision."""
    size = 8192 if IS_CARD else 256
    one = torch.randn(size, size, device=DEVICE, dtype=HALF)
    times = []
    for _ in range(12):
        start = time.perf_counter()
        _ = (one @ one)[0, 0].item()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / sorted(times[2:])[5]


def measured(network: Network, some: Sequence[Reading], flop: float, best: float) -> dict[str, Any]:
    alone = seconds(network, some)
    each, host = ahead(network, some)
    return {
        "pairs_per_s": round(len(some) / each, 1),
        "share_of_peak": round(flop / each / best, 3),
        "ms_alone": round(1000 * alone, 2),
        "ms_host": round(1000 * host, 2),
        "ms_for_20": round(1000 * seconds(network, some[:20]), 2),
    }


def distance(found: Any, exact: Any) -> dict[str, float]:
    gap = np.abs(found - exact)
    return {"mean": float(gap.mean()), "max": float(gap.max()), "spread": float(np.std(exact))}


def main() -> None:
    problem = attention.varlen_problem(DEVICE, HALF)
    name = torch.cuda.get_device_name() if IS_CARD else "CPU"
    best = peak()
    say({"device": name, "torch": torch.__version__, "varlen": problem or "right", "peak": best})
    for title in sys.argv[1:] or SHAPES:
        architecture, sizes = SHAPES[title]
        try:
            run(title, architecture, sizes if IS_CARD else TINY, best, uses_varlen=not problem)
        except Exception as error:
            say({"shape": title, "error": repr(error)[:600]})
        torch.compiler.set_stance("default")
        torch._dynamo.reset()


def run(title: str, architecture: str, sizes: Mapping[str, Any], best: float, *, uses_varlen: bool) -> None:
    some = readings(architecture == "qwen3")
    half = loaded(architecture, sizes, HALF)
    weights = sum(one.numel() for layer in half.layers for one in layer.values())
    tokens = sum(len(one.ids) - one.shared for one in some) + PREFIX * (architecture == "qwen3")
    exact = None
    if title != "Qwen3-8B":
        whole = Network(loaded(architecture, sizes, torch.float32), title, budget.MOST_ON_CARD)
        exact = whole.start(some)()[:, 0]
        del whole

    def network(layers: Any) -> Network:
        return Network(
            dataclasses.replace(half, layers=layers), title, budget.MOST_ON_CARD, uses_varlen=uses_varlen
        )

    for kind in KINDS.get(title, ("bf16",)):
        layers = half.layers if kind == "bf16" else [load.in_8_bits(one, kind) for one in half.layers]
        made = network(layers)
        row = {"shape": title, "kind": kind, "code": "eager"}
        say({**row, **measured(made, some, 2 * weights * tokens, best)})
        begun = time.perf_counter()
        compiled.start(made).join()
        row["code"] = "compiled" if isinstance(made.steps, compiled.CompiledSteps) else "failed"
        row["compile_s"] = round(time.perf_counter() - begun, 1)
        row |= measured(made, some, 2 * weights * tokens, best)
        if exact is not None:
            row |= distance(made.start(some)()[:, 0], exact)
        say(row)
        torch.compiler.set_stance("default")


def say(row: Mapping[str, Any]) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
