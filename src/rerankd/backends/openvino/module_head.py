"""A rank head that consists of sentence-transformers' modules (see formats/module_head.py), as graph nodes.

Its matrices are never compressed: they are about 1 % of the weights.

Source: the forward passes of Dense, LayerNorm and Normalize in sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from rerankd.backends.openvino.layers import Node, ints
from rerankd.backends.openvino.runtime import op
from rerankd.formats.module_head import Step
from rerankd.formats.weights import Weights

# torch's defaults: of nn.LayerNorm, and what functional.normalize divides by at least.
_NORM_EPSILON = 1e-5
_LEAST_LENGTH = 1e-12
_ACTIVATIONS: Mapping[str, Callable[[Node], Node]] = {
    "": lambda x: x,
    "gelu": lambda x: op.gelu(x, "erf"),
    "tanh": op.tanh,
    "relu": op.relu,
    "silu": op.swish,
    "sigmoid": op.sigmoid,
}


def graph(row: Node, weights: Weights, width: int, steps: Sequence[Step]) -> Node:
    """The logits [texts, 1] of pooled states [texts, width], or the projection of any states. Raises
    ModelFileError where a tensor is missing."""
    for what, name, activation in steps:
        if what == "normalize":
            row = _normalized(row)
        elif what == "norm":
            row = _norm(row, weights, name, width)
        else:
            rows = weights.rows(f"{name}.weight")
            found = _ACTIVATIONS[activation](_linear(row, weights, name, rows, width))
            if what == "residual dense":
                is_wide = weights.has(f"{name}.residual.weight")
                found = op.add(
                    found, _linear(row, weights, f"{name}.residual", rows, width) if is_wide else row
                )
            row, width = found, rows
    return row


def _linear(x: Node, weights: Weights, name: str, rows: int, columns: int) -> Node:
    product = op.matmul(x, op.constant(weights.array(f"{name}.weight", (rows, columns))), False, True)
    if not weights.has(f"{name}.bias"):
        return product
    return op.add(product, op.constant(weights.array(f"{name}.bias", (rows,))))


def _norm(x: Node, weights: Weights, name: str, width: int) -> Node:
    normed = op.mvn(x, ints(-1), True, _NORM_EPSILON, "inside_sqrt")
    scaled = op.multiply(normed, op.constant(weights.array(f"{name}.weight", (width,))))
    return op.add(scaled, op.constant(weights.array(f"{name}.bias", (width,))))


def _normalized(x: Node) -> Node:
    length = op.sqrt(op.reduce_sum(op.multiply(x, x), ints(-1), True))
    return op.divide(x, op.maximum(length, op.constant(np.float32(_LEAST_LENGTH))))
