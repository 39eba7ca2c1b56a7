"""Compile the steps of a forward pass with torch.compile, in a thread, while the model serves without it.

The compiler's code is kept on disk, in the folder that TORCHINDUCTOR_CACHE_DIR names.
"""

from __future__ import annotations

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
from rerankd.backends.torch.packing import Tokens
from rerankd.backends.torch.steps import Before, Projected, Steps
from rerankd.scoring.engine_input import Ids

# Lengths in tokens. All sums differ, because the compiler takes sizes that are equal here to be always equal.
_LENGTHS = ((70, 61, 59), (130, 127))
_PREFIX_LENGTHS = (33, 41)
# Compiled code rounds at other places; a wrong step differs by about 1.
_TOLERANCE = 0.1


class CompiledSteps(Steps):
    """Steps as compiled functions. For sizes that they were not compiled for, such as one token, they run as
    they are: no request waits for a compiler (see `torch.compiler.set_stance`)."""

    def __init__(self, steps: Steps) -> None:
        compile_: Callable[..., Any] = torch.compile
        self.first = compile_(steps.first, dynamic=True, fullgraph=True)  # type: ignore[method-assign]
        self.between = compile_(steps.between, dynamic=True, fullgraph=True)  # type: ignore[method-assign]


def start(network: Network) -> threading.Thread:
    """Compile the network's steps in a thread, which replaces them when they are ready and right. It reports
    the result on stderr."""
    thread = threading.Thread(target=_compile, args=(network,), name="compile", daemon=True)
    thread.start()
    return thread


def _compile(network: Network) -> None:
    begun = time.monotonic()
    try:
        steps = CompiledSteps(network.steps)
        compared = _Compared(network.steps, steps)
        for lengths in _LENGTHS:
            _compare(network, compared, lengths)
    except (
        Exception
    ) as error:  # a crash boundary: whatever the compiler lacks or fails at, the model serves on
        problem = str(error).strip().partition("\n")[0] or type(error).__name__
        print(f"not compiled: {problem:.300}", file=sys.stderr, flush=True)
        return
    if not compared.difference < _TOLERANCE:
        print(f"not compiled: its results differ by {compared.difference:.2g}", file=sys.stderr, flush=True)
        return
    torch.compiler.set_stance("eager_on_recompile")
    network.steps = steps
    took = time.monotonic() - begun
    print(
        f"compiled in {took:.1f} s, which changes results by {compared.difference:.1g}",
        file=sys.stderr,
        flush=True,
    )


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


def _compare(network: Network, steps: Steps, lengths: Sequence[int]) -> None:
    """Compute random inputs of these lengths with other steps: without prefixes and, where the model keeps
    those, with two."""
    random = np.random.default_rng(0)

    def ids(length: int) -> Ids:
        return random.integers(0, network.rows, length).astype(np.int32)

    own = [ids(length) for length in lengths]
    with torch.inference_mode():
        network.states([Tokens(one, len(one) // 2) for one in own], (), steps)
        if network.shares_prefix:
            prefixes = network.computed_prefixes([ids(length) for length in _PREFIX_LENGTHS], steps)
            after = [Tokens(one, len(one), at % len(prefixes)) for at, one in enumerate(own)]
            network.states(after, prefixes, steps)
