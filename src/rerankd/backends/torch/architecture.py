"""The protocol of an architecture: which tensors it needs, and its forward pass over packed sequences.

To add an architecture:
1. Write a class in a new file of architectures/, and add a row to the table in architectures/__init__.py.
2. Add its name to `ARCHITECTURES` in support.py, which imports no PyTorch.
3. Add a checkpoint to tests/backends/cases.py.

Tensor and metadata names are those of GGUF, such as `blk.0.attn_q.weight`. formats/ translates those of
safetensors checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from rerankd.backends.torch.attention import Attention
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.layers import Named, Rotation
from rerankd.backends.torch.packing import Rows
from rerankd.domain import Pooling
from rerankd.formats.module_head import Step
from rerankd.formats.weights import Weights


@dataclass(frozen=True, slots=True)
class Part:
    """A matrix or a norm in the file: `name` without suffix, and the shape of its weight, rows first. Its
    bias is loaded if the file has one; with `needs_bias`, a file without it is damaged. `is_table`: it has
    no bias. `not_in_first`: the first layer may lack it. `is_wide`: it stays in float32."""

    name: str
    shape: tuple[int, ...]
    needs_bias: bool = False
    is_table: bool = False
    not_in_first: bool = False
    is_wide: bool = False


Parts = Mapping[str, tuple[Part, ...]]
"""The architecture's name of a weight -> the parts of the file that are joined by rows."""


class Unsupported(RuntimeError):
    """The file declares something that the architecture does not compute; the text is a clause."""


class Architecture(Protocol):
    """The forward pass of one model, in the parts between which the network mixes tokens (see network.py).

    `attentions` has what each layer's attention reads. `tensors` are needed once, `layer_tensors` once per
    layer, with names that follow `blk.N.`. `head_steps` are the steps of the class's own rank head,
    `head_epsilon` that of its norms, and `head_pooling` how states are pooled for it if the file does not
    declare that. `shares_prefix`: tokens do not read later ones, so the keys and values of the beginning of a
    prompt can be kept. `state_width` is the width of the final states, `head_width` that of one attention
    head; there are `key_heads` heads of keys and values.

    `project` and `finish` are functions of tensors alone, in which each token is computed on its own:
    compiled.py compiles them.
    """

    attentions: tuple[Attention, ...]
    tensors: Parts
    layer_tensors: Parts
    head_steps: tuple[Step, ...]
    head_epsilon: float
    head_pooling: Pooling
    shares_prefix: bool
    state_width: int
    head_width: int
    key_heads: int

    def __init__(self, weights: Weights) -> None: ...

    def embed(self, batch: PackedBatch, weights: Named) -> Tensor:
        """The states [T, width] before the first layer."""

    def project(self, x: Tensor, weights: Named, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        """A layer before its attention: the query [T, heads, n], and the key and value [T, key heads, n] of
        the states x [T, width]. `rotation` has the layer's rotary positions, if it has any."""

    def finish(self, x: Tensor, mixed: Tensor, weights: Named) -> Tensor:
        """A layer after its attention: the new states [T, width] from the states x [T, width] and what the
        attention returned, [T, heads · n]."""

    def final(self, rows: Tensor, weights: Named) -> Tensor:
        """The states [R, width] that the head reads, from those after the last layer."""


@runtime_checkable
class Prepared(Protocol):
    """An architecture that computes something from its weights once, after they are loaded."""

    def prepare(self, weights: Named, layers: Sequence[Named]) -> None:
        """Set `attentions`, from the weights that are needed once and those of each layer."""


def pooled_as(pooling: Pooling) -> Rows:
    """The tokens that a pooling reads."""
    found: dict[Pooling, Rows] = {"cls": "first", "last": "last", "none": "wanted"}
    return found.get(pooling, "all")
