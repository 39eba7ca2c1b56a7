"""The precision of the arithmetic: float32, or bf16 where the CPU is faster with it.

OpenVINO says of every CPU with AVX512_BF16 that it can do bf16, and of some without. Which is faster depends
on the CPU: in bf16 MiniLM reads 45,000 tokens a second with AMX, 8,800 with AVX512_BF16 alone (less than in
f32), and 456 with neither (13,100 in f32). So the CPU's flags say whether bf16 is tried at all, and a
measurement decides. bf16 moves a logit by up to 0.025.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np

from rerankd.engine.openvino.runtime import op, ov

Precision = Literal["f32", "bf16"]
Wanted = Literal["auto", "f32", "bf16"]

# bf16 has to be worth what it costs in accuracy.
_FASTER_BY = 1.15
_BF16 = frozenset(("amx_bf16", "avx512_bf16"))
_TOKENS = 512
_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Choice:
    """A precision, and why in words."""

    precision: Precision
    why: str


def choose(wanted: Wanted, instructions: Collection[str], measure: Callable[[Precision], float]) -> Choice:
    """`instructions` are the CPU's (see machine.py); `measure` gives the seconds of a test."""
    able = sorted(_BF16 & set(instructions))
    if not able and wanted != "f32":  # OpenVINO computes in f32 then, whatever it is told
        return Choice("f32", "this CPU has no bf16 arithmetic")
    if wanted != "auto":
        return Choice(wanted, "as the settings say")
    ratio = measure("f32") / measure("bf16")
    said = f"this CPU has {' and '.join(able)}, and bf16 is {ratio:.1f} times as fast as f32"
    return Choice("bf16" if ratio > _FASTER_BY else "f32", said)


def measure(core: ov.Core, width: int, hidden: int, threads: int, precision: Precision) -> float:
    """Seconds that a feed-forward block of this size takes for 512 tokens, the best of three."""
    random = np.random.default_rng(1)
    x = op.parameter([-1, width], np.float32)
    up = op.constant(random.normal(0, 0.02, (hidden, width)).astype(np.float32))
    down = op.constant(random.normal(0, 0.02, (width, hidden)).astype(np.float32))
    node = x
    for _ in range(4):
        node = op.matmul(op.gelu(op.matmul(node, up, False, True), "erf"), down, False, True)
    model = core.compile_model(ov.Model([op.result(node)], [x]), "CPU", config(threads, precision))
    request = model.create_infer_request()
    request.set_input_tensor(ov.Tensor(random.normal(0, 1, (_TOKENS, width)).astype(np.float32)))
    taken = []
    for _ in range(_ROUNDS + 1):  # the first one warms up
        started = time.perf_counter()
        request.infer()
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def config(threads: int, precision: Precision) -> dict[str, object]:
    """How OpenVINO is to compile a model: one stream, for a second one gains nothing and costs memory."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        # Else activations are rounded to 8 bits where weights are compressed.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "INFERENCE_NUM_THREADS": threads,
        # Pinned threads wait for a core that somebody else has, while another one is free.
        "ENABLE_CPU_PINNING": False,
    }
