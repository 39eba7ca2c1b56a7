"""Weights in 8 bits, each row with its own scale: as float8, for products of float8 numbers, or as int8,
which is expanded before each product and so saves only memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.devices import EightBits

_TYPES = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}
_LARGEST = {"fp8": 448.0, "int8": 127.0}
# torch's product of float8 matrices takes sizes that are multiples of this.
_MULTIPLE = 16


def can_quantize(shape: torch.Size) -> bool:
    """Whether a weight of this shape is a matrix that can be kept in 8 bits."""
    return len(shape) == 2 and all(size % _MULTIPLE == 0 for size in shape)


def quantized(weight: Tensor, kind: EightBits) -> tuple[Tensor, Tensor]:
    """The numbers of a matrix [rows, columns] in 8 bits, and the scale of each row, float32 [rows, 1]."""
    wide = weight.float()
    scale = wide.abs().amax(1, keepdim=True).clamp(min=1e-12) / _LARGEST[kind]
    scaled = wide / scale
    return (scaled.round() if kind == "int8" else scaled).to(_TYPES[kind]), scale


def product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x · weightᵀ + bias for a weight of `quantized`. With float8, the rows of x [T, columns] are rounded."""
    if weight.dtype == torch.int8:
        return F.linear(x, (weight * scale).to(x.dtype), bias)
    largest = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12)
    rows = (x.float() * (_LARGEST["fp8"] / largest)).to(weight.dtype)
    found = torch._scaled_mm(
        rows, weight.t(), largest / _LARGEST["fp8"], scale.t(), out_dtype=x.dtype, use_fast_accum=True
    )
    return found if bias is None else found + bias
