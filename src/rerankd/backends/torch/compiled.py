"""Compile the steps of a forward pass with torch.compile, in a thread, while the model serves without it.

The compiler's code is kept on disk, in the folder that TORCHINDUCTOR_CACHE_DIR names.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rerankd.backends.torch.layers import Named, Rotation
from rerankd.backends.torch.network import Network
from rerankd.backends.torch.steps import Before, Projected, Steps
from rerankd.backends.worker.passes import Reading

# Lengths in tokens of inputs, and of what they share. All sums differ, because the compiler takes sizes that
# are equal here to be always equal.
_LENGTHS = ((103, 94, 92), (163, 160))
_SHARED = 33
# Compiled code rounds at other places; a wrong step differs by about 1.
_TOLERANCE = 0.1
# A typical pass, to compare the speeds.
_TYPICAL = (192,) * 64
_ROUNDS = 8
_LONGEST_S = 5.0
# Compiled code must gain as much: it needs time and memory to be made.
_GAIN = 1.03


class CompiledSteps(Steps):
    """Steps of which `between` is a compiled function. For sizes that it was not compiled for, such as one
    token, it runs as it is: no request waits for a compiler (see `torch.compiler.set_stance`)."""

    def __init__(self, steps: Steps) -> None:
        compile_: Callable[..., Any] = torch.compile
        self.first = steps.first  # type: ignore[method-assign]
        self.between = compile_(steps.between, dynamic=True, fullgraph=True)  # type: ignore[method-assign]


def start(network: Network) -> threading.Thread:
    """Compile the network's steps in a thread, which replaces them when they are ready and right. It reports
    the result on stderr."""
    thread = threading.Thread(target=_compile, args=(network,), name="compile", daemon=True)
    thread.start()
    return thread


def _compile(network: Network) -> None:
    begun = time.monotonic()
    result, steps = "compiled code is not used", None
    try:
        reason, steps = _compiled(network.twin())
    except Exception as error:  # a crash boundary: whatever the compiler lacks, the model serves on
        result, reason = "not compiled", str(error).strip().partition("\n")[0] or type(error).__name__
    if steps is not None:
        result, network.steps = "compiled", steps
    print(f"{result} ({reason:.300}) after {time.monotonic() - begun:.1f} s", file=sys.stderr, flush=True)


def _compiled(network: Network) -> tuple[str, Steps | None]:
    """Compiled steps and how much faster they are; or None, and why not. The network must not serve."""
    eager = network.steps
    steps = CompiledSteps(eager)
    network.steps = compared = _Compared(eager, steps)
    for lengths in _LENGTHS:
        network.start(_readings(network.rows, lengths))()
        network.prefixes.clear()
    torch.compiler.set_stance("eager_on_recompile")
    if not compared.difference < _TOLERANCE:
        return f"its results differ by {compared.difference:.2g}", None
    gain = _gain(network, eager, steps)
    return f"{gain:.2f} times as fast", steps if gain > _GAIN else None


def _gain(network: Network, eager: Steps, steps: Steps) -> float:
    """How many times as fast a typical pass is with other steps. Other passes may run at the same time, so
    both kinds take turns, and the least time of each counts."""
    readings = _readings(network.rows, _TYPICAL)
    least = {eager: math.inf, steps: math.inf}
    until = time.monotonic() + _LONGEST_S
    for at, one in enumerate((eager, steps) * _ROUNDS):
        begun = time.monotonic()
        if at > 2 and begun > until:
            break
        network.steps = one
        network.start(readings)()
        least[one] = min(least[one], time.monotonic() - begun)
    return least[eager] / least[steps]


def _readings(rows: int, lengths: Sequence[int]) -> list[Reading]:
    """Inputs of random token ids, which begin alike."""
    random = np.random.default_rng(0)
    stem = random.integers(0, rows, _SHARED).astype(np.int32)
    return [
        Reading(np.concatenate((stem, own)), length // 2, _SHARED, (stem,))
        for length in lengths
        for own in (random.integers(0, rows, length - _SHARED).astype(np.int32),)
    ]


class _Compared(Steps):
    """The steps of a network, compared with compiled ones on the same states. `difference` is the largest
    of a step, relative to the norm of its result: after all layers it would depend on the model."""

    def __init__(self, steps: Steps, compiled: CompiledSteps) -> None:
        self._steps = steps
        self._compiled = compiled
        self.difference = 0.0

    def first(self, x: Tensor, weights: Named, rotation: Rotation | None, before: Before | None) -> Projected:
        found = self._steps.first(x, weights, rotation, before)
        self._compare(self._compiled.first(x, weights, rotation, before), found)
        return found

    def between(
        self,
        x: Tensor,
        mixed: Tensor,
        weights: Named,
        following: Named,
        rotation: Rotation | None,
        before: Before | None,
    ) -> tuple[Tensor, Projected]:
        found = self._steps.between(x, mixed, weights, following, rotation, before)
        x, projected = self._compiled.between(x, mixed, weights, following, rotation, before)
        self._compare((x, *projected), (found[0], *found[1]))
        return found

    def _compare(self, some: Sequence[Tensor], others: Sequence[Tensor]) -> None:
        gaps = [float((one - other).norm() / other.norm()) for one, other in zip(some, others, strict=True)]
        self.difference = max(self.difference, *gaps)
