"""A rank head that consists of sentence-transformers' modules (see formats/module_head.py), in float32.

Source: the forward passes of Dense, LayerNorm and Normalize in sentence-transformers 6.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from rerankd.backends.onnx.graph import MICROSOFT, Graph
from rerankd.formats.module_head import Step
from rerankd.formats.weights import Weights

# torch's defaults: of nn.LayerNorm, and what functional.normalize divides by at least.
_NORM_EPSILON = 1e-5
_LEAST_LENGTH = 1e-12
_OPERATORS: Mapping[str, str] = {"gelu": "Gelu", "tanh": "Tanh", "relu": "Relu", "sigmoid": "Sigmoid"}


def graph(g: Graph, row: str, weights: Weights, width: int, steps: Sequence[Step]) -> str:
    """The logits [texts, 1] of pooled states [texts, width]. Raises ModelFileError where a tensor is
    missing."""
    for what, name, activation in steps:
        if what == "normalize":
            length = g.op("ReduceL2", row, g.ints(-1), keepdims=1)
            row = g.op("Div", row, g.op("Max", length, g.const(_LEAST_LENGTH)))
        elif what == "norm":
            both = (g.const(weights.array(f"{name}.{part}", (width,))) for part in ("weight", "bias"))
            row = g.op("LayerNormalization", row, *both, axis=-1, epsilon=_NORM_EPSILON)
        else:
            rows = weights.rows(f"{name}.weight")
            found = activated(g, _linear(g, row, weights, name, rows, width), activation)
            if what == "residual dense":
                is_wide = weights.has(f"{name}.residual.weight")
                other = _linear(g, row, weights, f"{name}.residual", rows, width) if is_wide else row
                found = g.op("Add", found, other)
            row, width = found, rows
    return row


def activated(g: Graph, x: str, activation: str) -> str:
    """Apply an activation function by its name in a head; "" is none."""
    if activation == "silu":
        return g.op("QuickGelu", x, of=MICROSOFT, alpha=1.0)
    return g.op(_OPERATORS[activation], x) if activation else x


def _linear(g: Graph, x: str, weights: Weights, name: str, rows: int, columns: int) -> str:
    product = g.exact(x, rows, columns, partial(weights.array, f"{name}.weight", (rows, columns)))
    if not weights.has(f"{name}.bias"):
        return product
    return g.op("Add", product, g.const(weights.array(f"{name}.bias", (rows,))))
