"""Load a model's files, safetensors or GGUF (dequantised), to a device."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from rerankd.backends.torch.architecture import Architecture, Part, Parts, Prepared, Unsupported
from rerankd.backends.torch.architectures import ARCHITECTURES
from rerankd.backends.torch.devices import EightBits
from rerankd.backends.torch.heads import Head
from rerankd.backends.torch.layers import Named
from rerankd.backends.torch.network import Loaded
from rerankd.backends.torch.quantized import can_quantize, quantized
from rerankd.domain import Pooling
from rerankd.errors import ModelFileError
from rerankd.formats.module_head import STEPS, Step
from rerankd.formats.weights import Floats, Weights

# torch's default for nn.LayerNorm, which sentence-transformers' module uses.
_MODULE_NORM_EPSILON = 1e-5
_TYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_LAST = "cls.output"
_LABELS: Step = ("dense", "labels", "")


def load(
    path: Path,
    pooling: Pooling,
    *,
    labels: Sequence[int] = (),
    device: torch.device,
    dtype: torch.dtype,
    eight_bits: EightBits = "",
) -> Loaded:
    """Load the model at `path`. `pooling` is `rank` for the rank head, `none` for the vectors of tokens,
    which the steps that the file declares make of their states, else how an embedding is pooled. With
    `labels`, the ids of one or two tokens, it is a causal model whose score is logit[first], minus
    logit[second] if there are two. With `eight_bits`, the matrices of layers are kept so.

    Raises ModelFileError if the file is damaged, and Unsupported if it can't be computed.
    """
    weights = Weights(path)
    known = ARCHITECTURES.get(weights.architecture)
    if known is None:
        raise Unsupported(f"the architecture {weights.architecture} is not known")
    architecture = known(weights)
    outside = _named(weights, architecture.tensors, "", device, dtype)
    layers = []
    is_prepared = isinstance(architecture, Prepared)
    for at in range(len(architecture.attentions)):
        layer = _named(weights, architecture.layer_tensors, f"blk.{at}.", device, dtype)
        layers.append(in_8_bits(layer, eight_bits) if eight_bits and not is_prepared else layer)
    if isinstance(architecture, Prepared):
        architecture.prepare(outside, layers)
        layers = [in_8_bits(layer, eight_bits) if eight_bits else layer for layer in layers]
    head = _label_head(weights, architecture, labels) if labels else _head(weights, architecture, pooling)
    held = {name: one.to(device) for name, one in head.weights.items()}
    head = replace(head, weights=held)
    return Loaded(architecture, outside, layers, head, device, weights.rows("token_embd.weight"))


def _named(weights: Weights, parts: Parts, before: str, device: torch.device, dtype: torch.dtype) -> Named:
    """The weights of one layer, or those outside of layers (`before` is ""), by the architecture's names."""
    found = {}
    for name, joined in parts.items():
        kept = torch.float32 if joined[0].is_wide else dtype
        for ending, tensors in _joined(weights, joined, before, device, kept):
            found[f"{name}.{ending}"] = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
    return found


def in_8_bits(layer: Named, kind: EightBits) -> Named:
    """The weights of a layer, its matrices in 8 bits; see quantized.py."""
    found = dict(layer)
    for name, weight in layer.items():
        if name.endswith(".weight") and can_quantize(weight.shape):
            found[name], found[f"{name.removesuffix('weight')}scale"] = quantized(weight, kind)
    return found


def _joined(
    weights: Weights, parts: Sequence[Part], before: str, device: torch.device, dtype: torch.dtype
) -> Iterator[tuple[Literal["weight", "bias"], list[Tensor]]]:
    """The weights, and the biases if there are any, of parts that are joined by rows."""
    if any(one.not_in_first for one in parts) and before == "blk.0.":
        parts = [one for one in parts if weights.has(f"{before}{one.name}.weight")]
    if not parts:
        return

    def moved(ending: str, dimensions: int) -> list[Tensor]:
        return [
            _moved(weights, f"{before}{one.name}.{ending}", one.shape[:dimensions], device, dtype)
            for one in parts
        ]

    yield "weight", moved("weight", 2)
    has_bias = any(
        one.needs_bias or weights.has(f"{before}{one.name}.bias") for one in parts if not one.is_table
    )
    if has_bias:
        yield "bias", moved("bias", 1)


def _moved(
    weights: Weights, name: str, shape: Sequence[int], device: torch.device, dtype: torch.dtype
) -> Tensor:
    """A tensor of the file on the device. Plain numbers go there as they are in the file, and are converted
    there."""
    raw, type_name = weights.stored(name, shape)
    if type_name not in _TYPES:
        return torch.from_numpy(weights.array(name, shape)).to(device, dtype)
    with warnings.catch_warnings():  # the mapped file is read-only, and nothing writes to this tensor
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        there = torch.from_numpy(raw)
    # Cloned on a CPU: a view would read the file again at each pass when its pages were dropped.
    return there.view(_TYPES[type_name]).view(*shape).to(device, dtype, copy=True)


def _label_head(weights: Weights, architecture: Architecture, labels: Sequence[int]) -> Head:
    """The label's logit, or the difference of two, as one dense row. Without an output matrix, the model's is
    the embedding matrix."""
    name = "output.weight" if weights.has("output.weight") else "token_embd.weight"
    table = weights.table(name, weights.rows(name), architecture.state_width)
    rows = table[np.array(labels)]
    cap: float = weights.key("final_logit_softcapping", 0.0)
    if len(rows) == 2 and not cap:
        rows = rows[:1] - rows[1:]
    return Head("last", (_LABELS,), {"labels.weight": torch.from_numpy(rows)}, 0.0, cap)


def _head(weights: Weights, architecture: Architecture, pooling: Pooling) -> Head:
    declared: tuple[Step, ...] = weights.key(STEPS, ())
    if pooling == "none":
        projection = _head_weights(weights, declared, architecture.state_width)
        return Head(pooling, declared, _tensors(projection), _MODULE_NORM_EPSILON)
    if pooling != "rank":
        return Head(pooling, (), {}, 0.0)
    steps = declared or architecture.head_steps
    epsilon = _MODULE_NORM_EPSILON if declared else architecture.head_epsilon
    said = {1: "mean", 2: "cls", 3: "last"}.get(
        weights.key("classifier.pooling_type", 0), architecture.head_pooling
    )
    if not steps:
        raise Unsupported(f"a rank head of {weights.architecture} is not known")
    found = _one_row(_head_weights(weights, steps, architecture.state_width), weights.path)
    return Head(said, steps, _tensors(found), epsilon)  # type: ignore[arg-type]


def _tensors(found: dict[str, Floats]) -> Named:
    return {name: torch.from_numpy(one) for name, one in found.items()}


def _head_weights(weights: Weights, steps: Sequence[Step], width: int) -> dict[str, Floats]:
    """The weights of a head whose first step reads states of this width, in float32."""
    found: dict[str, Floats] = {}
    for what, name, _ in steps:
        if what == "normalize":
            continue
        rows = width if what == "norm" else weights.rows(f"{name}.weight")
        shape = (width,) if what == "norm" else (rows, width)
        found[f"{name}.weight"] = weights.array(f"{name}.weight", shape)
        if what == "residual dense" and weights.has(f"{name}.residual.weight"):
            found[f"{name}.residual.weight"] = weights.array(f"{name}.residual.weight", shape)
        for one in (name, f"{name}.residual"):
            if weights.has(f"{one}.bias"):
                found[f"{one}.bias"] = weights.array(f"{one}.bias", (rows,))
        width = rows
    return found


def _one_row(found: dict[str, Floats], path: Path) -> dict[str, Floats]:
    """The last layer with one row. Of two labels that is the second minus the first, whose value is the
    log-odds of their softmax."""
    last = found[f"{_LAST}.weight"]
    if len(last) > 2:
        raise ModelFileError(f"{path}: its rank head has {len(last)} labels, not 1 or 2.")
    if len(last) == 2:
        found |= {name: one[1:] - one[:1] for name, one in found.items() if name.startswith(f"{_LAST}.")}
    return found
