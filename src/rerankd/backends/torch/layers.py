"""Layers that architectures share: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.quantized import product

Named = Mapping[str, Tensor]
"""Weights by name. A bias that the model does not have is missing; a weight with a `scale` has 8 bits."""

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of each token's rotary positions, each [T, 1, n]."""

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "": lambda x: x,
    "gelu": F.gelu,  # the erf form
    "relu": F.relu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "tanh": torch.tanh,
}
"""Activation functions by their names in formats/."""


def linear(x: Tensor, weights: Named, name: str) -> Tensor:
    """x · weightᵀ + bias."""
    weight, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
    if (scale := weights.get(f"{name}.scale")) is not None:
        return product(x, weight, scale, bias)
    return F.linear(x, weight, bias)


def layer_norm(x: Tensor, weights: Named, name: str, epsilon: float) -> Tensor:
    """Layer normalisation over the last axis."""
    weight = weights[f"{name}.weight"]
    return F.layer_norm(x, weight.shape, weight, weights.get(f"{name}.bias"), epsilon)


def rms_norm(x: Tensor, weights: Named, name: str, epsilon: float) -> Tensor:
    """Root mean square normalisation over the last axis, computed in float32."""
    weight = weights[f"{name}.weight"]
    return F.rms_norm(x, weight.shape, weight, epsilon)


class Rotary(NamedTuple):
    """Pair i of a head's n numbers turns by position / base^(2i/n), divided by `factor`, or by number i of
    `divisors` if there are any."""

    base: float
    factor: float = 1.0
    divisors: tuple[float, ...] = ()

    def frequencies(self, width: int, device: torch.device) -> Tensor:
        """The angle of each pair of a head's `width` numbers at position 1, in float32."""
        exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
        plain = 1.0 / self.base**exponents
        return plain / torch.tensor(self.divisors or self.factor, device=device)


def rotation(positions: Tensor, width: int, rotary: Rotary, dtype: torch.dtype) -> Rotation:
    """The rotary positions of tokens in heads of `width` numbers. The angles are computed in float32, as in
    transformers."""
    angles = torch.outer(positions.float(), rotary.frequencies(width, positions.device))
    both = torch.cat((angles, angles), -1).unsqueeze(1)
    return both.cos().to(dtype), both.sin().to(dtype)


def rotated(x: Tensor, turned: Rotation) -> Tensor:
    """Apply rotary positions to x [T, heads, n]. The numbers i and i + n / 2 of a head are a pair."""
    first, second = x.chunk(2, -1)
    return x * turned[0] + torch.cat((-second, first), -1) * turned[1]
