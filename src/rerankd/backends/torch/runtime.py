"""Load a model for serving on a device: threads, attention kernel, and the size of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from rerankd.backends.torch import attention, budget, compiled
from rerankd.backends.torch.devices import EightBits, Precision
from rerankd.backends.torch.load import load
from rerankd.backends.torch.network import Loaded, Network
from rerankd.domain import Pooling

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


def start(
    path: Path,
    pooling: Pooling,
    *,
    labels: Sequence[int] = (),
    device_name: str = "cpu",
    precision: Precision = "f32",
    why: str = "",
    threads: int = 1,
    wants_varlen: bool = False,
    compiles: bool = False,
    eight_bits: EightBits = "",
) -> Network:
    """Load a model (see load.py) and prepare its device. With `wants_varlen`, packed attention is used if it
    works here; with `compiles`, a compiler starts (see compiled.py)."""
    set_threads(threads)
    device, dtype = torch.device(device_name), DTYPES[precision]
    problem = attention.varlen_problem(device, dtype) if wants_varlen else ""
    loaded = load(path, pooling, labels=labels, device=device, dtype=dtype, eight_bits=eight_bits)
    said = [f"PyTorch {torch.__version__}", f"{precision} ({why})" if why else precision]
    if eight_bits:
        said.append(f"weights in {eight_bits}")
    said.append(f"{threads} threads" if device.type == "cpu" else device_name)
    if problem:
        said.append(f"padded attention ({problem})")
    network = Network(
        loaded, ", ".join(said), _tokens_a_pass(loaded, dtype), uses_varlen=wants_varlen and not problem
    )
    if compiles:
        compiled.start(network)
    return network


def set_threads(count: int) -> None:
    """Compute with this many threads on a CPU."""
    torch.set_num_threads(count)


def _tokens_a_pass(loaded: Loaded, dtype: torch.dtype) -> int:
    if loaded.device.type != "cuda":
        return budget.ON_CPU
    free, _ = torch.cuda.mem_get_info(loaded.device)
    inner = max(one.shape[0] for one in loaded.layers[0].values())
    return budget.on_card(free, budget.bytes_a_token(loaded.architecture.state_width, inner, dtype.itemsize))
