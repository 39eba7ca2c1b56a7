"""From final states to raw values: pooling, then the steps of a head, in float32 whatever the body has.

The head of every scoring method is a list of steps (see formats/module_head.py): a rank head's layers; for a
causal model one dense step, whose single row is the difference of the labels' rows in the output matrix; for
an embedding model none; for a model that compares the states of tokens, their projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.layers import ACTIVATIONS, Named, layer_norm, linear
from rerankd.domain import Pooling
from rerankd.formats.module_head import Step


@dataclass(frozen=True, slots=True)
class Head:
    """`weights` are in float32; `epsilon` is that of its norms. With `cap`, the logits of one or two labels
    become cap · tanh(logit / cap), before they are subtracted."""

    pooling: Pooling
    steps: Sequence[Step]
    weights: Named
    epsilon: float
    cap: float = 0.0

    def __call__(self, states: Tensor, batch: PackedBatch) -> Tensor:
        """The values [N, 1], or the embeddings [N, width], of the states [R, width] of the batch's rows. With
        the pooling "none", each row becomes a vector: [R, width]."""
        row = states.float()
        if self.pooling == "mean":
            row = torch.segment_reduce(row, "mean", lengths=batch.row_counts.long(), axis=0)
        for what, name, activation in self.steps:
            if what == "normalize":
                row = F.normalize(row, dim=-1)
            elif what == "norm":
                row = layer_norm(row, self.weights, name, self.epsilon)
            else:
                row = self._dense(row, name, activation, is_residual=what == "residual dense")
        if self.cap:
            first, *second = (self.cap * torch.tanh(row / self.cap)).split(1, -1)
            return first - second[0] if second else first
        return row

    def _dense(self, row: Tensor, name: str, activation: str, *, is_residual: bool) -> Tensor:
        found = ACTIVATIONS[activation](linear(row, self.weights, name))
        if not is_residual:
            return found
        is_wide = f"{name}.residual.weight" in self.weights
        return found + (linear(row, self.weights, f"{name}.residual") if is_wide else row)
