"""Load a model's files, safetensors or GGUF (dequantised), to a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from rerankd.backends.torch.architecture import Architecture, Part, Parts, Prepared, Unsupported
from rerankd.backends.torch.architectures import ARCHITECTURES
from rerankd.backends.torch.heads import Head
from rerankd.backends.torch.layers import Named
from rerankd.backends.torch.network import Loaded
from rerankd.domain import Pooling
from rerankd.errors import ModelFileError
from rerankd.formats.module_head import STEPS, Step
from rerankd.formats.weights import Floats, Weights

# torch's default for nn.LayerNorm, which sentence-transformers' module uses.
_MODULE_NORM_EPSILON = 1e-5
_LAST = "cls.output"
_LABELS: Step = ("dense", "labels", "")


def load(
    path: Path,
    pooling: Pooling,
    *,
    labels: Sequence[int] = (),
    device: torch.device,
    dtype: torch.dtype,
) -> Loaded:
    """Load the model at `path`. `pooling` is `rank` for the rank head, else how an embedding is pooled. With
    `labels`, the ids of one or two tokens, it is a causal model whose score is logit[first], minus
    logit[second] if there are two.

    Raises ModelFileError if the file is damaged, and Unsupported if it can't be computed.
    """
    weights = Weights(path)
    known = ARCHITECTURES.get(weights.architecture)
    if known is None:
        raise Unsupported(f"the architecture {weights.architecture} is not known")
    architecture = known(weights)
    outside = _named(weights, architecture.tensors, "", device, dtype)
    layers = [
        _named(weights, architecture.layer_tensors, f"blk.{at}.", device, dtype)
        for at in range(len(architecture.attentions))
    ]
    if isinstance(architecture, Prepared):
        architecture.prepare(outside, layers)
    head = _label_head(weights, architecture, labels) if labels else _head(weights, architecture, pooling)
    held = {name: one.to(device) for name, one in head.weights.items()}
    head = replace(head, weights=held)
    return Loaded(architecture, outside, layers, head, device, weights.rows("token_embd.weight"))


def _named(weights: Weights, parts: Parts, before: str, device: torch.device, dtype: torch.dtype) -> Named:
    """The weights of one layer, or those outside of layers (`before` is ""), by the architecture's names."""
    found = {}
    for name, joined in parts.items():
        for ending, arrays in _joined(weights, joined, before):
            whole = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            kept = torch.float32 if joined[0].is_wide else dtype
            found[f"{name}.{ending}"] = torch.from_numpy(whole).to(device, kept)
    return found


def _joined(
    weights: Weights, parts: Sequence[Part], before: str
) -> Iterator[tuple[Literal["weight", "bias"], list[Floats]]]:
    """The weights, and the biases if there are any, of parts that are joined by rows."""
    if any(one.not_in_first for one in parts) and before == "blk.0.":
        parts = [one for one in parts if weights.has(f"{before}{one.name}.weight")]
    if not parts:
        return
    yield "weight", [weights.array(f"{before}{one.name}.weight", one.shape) for one in parts]
    has_bias = any(
        one.needs_bias or weights.has(f"{before}{one.name}.bias") for one in parts if not one.is_table
    )
    if has_bias:
        yield "bias", [weights.array(f"{before}{one.name}.bias", one.shape[:1]) for one in parts]


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
    if pooling != "rank":
        return Head(pooling, (), {}, 0.0)
    declared: tuple[Step, ...] = weights.key(STEPS, ())
    steps = declared or architecture.head_steps
    epsilon = _MODULE_NORM_EPSILON if declared else architecture.head_epsilon
    said = {1: "mean", 2: "cls"}.get(weights.key("classifier.pooling_type", 0), architecture.head_pooling)
    if not steps:
        raise Unsupported(f"a rank head of {weights.architecture} is not known")
    return Head(said, steps, _head_weights(weights, steps, architecture.state_width), epsilon)  # type: ignore[arg-type]


def _head_weights(weights: Weights, steps: Sequence[Step], width: int) -> Named:
    """The weights of a rank head whose first step reads states of this width, in float32."""
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
    return {name: torch.from_numpy(one) for name, one in _one_row(found, weights.path).items()}


def _one_row(found: dict[str, Floats], path: Path) -> dict[str, Floats]:
    """The last layer with one row. Of two labels that is the second minus the first, whose value is the
    log-odds of their softmax."""
    last = found[f"{_LAST}.weight"]
    if len(last) > 2:
        raise ModelFileError(f"{path}: its rank head has {len(last)} labels, not 1 or 2.")
    if len(last) == 2:
        found |= {name: one[1:] - one[:1] for name, one in found.items() if name.startswith(f"{_LAST}.")}
    return found
