"""The steps of a forward pass from one attention to the next, which are functions of tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from rerankd.backends.torch.architecture import Architecture
from rerankd.backends.torch.attention import with_prefixes
from rerankd.backends.torch.layers import Named, Rotation

Projected = tuple[Tensor, Tensor, Tensor]
"""Query [T, heads, n]; keys and values [keys, key heads, n]."""


class Before(NamedTuple):
    """The keys and values of one layer that the pass's prefixes have, and which of them each sequence reads:
    see attention.with_prefixes."""

    keys: Tensor
    values: Tensor
    key_index: Tensor


class Steps:
    """The steps of an architecture."""

    def __init__(self, architecture: Architecture) -> None:
        self._architecture = architecture

    def first(self, x: Tensor, weights: Named, rotation: Rotation | None, before: Before | None) -> Projected:
        """The first layer, up to its attention, from the embeddings x [T, width]."""
        query, key, value = self._architecture.project(x, weights, rotation)
        if before is not None:
            key = with_prefixes(key, before.keys, before.key_index)
            value = with_prefixes(value, before.values, before.key_index)
        return query, key, value

    def between(
        self,
        x: Tensor,
        mixed: Tensor,
        weights: Named,
        following: Named,
        rotation: Rotation | None,
        before: Before | None,
    ) -> tuple[Tensor, Projected]:
        """From one attention to the next: the rest of a layer, and the following one up to its attention."""
        x = self._architecture.finish(x, mixed, weights)
        return x, self.first(x, following, rotation, before)
