"""DeBERTa-v2 and -v3. They compute the same as DebertaV2Model of transformers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.architecture import Part, Parts
from rerankd.backends.torch.architectures.bert import Bert
from rerankd.backends.torch.attention import Attention
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.layers import Named, layer_norm
from rerankd.formats.weights import Weights


class DebertaV2(Bert):
    """DeBERTa: BERT with disentangled attention, without absolute positions.

    An attention score is the sum of three products: query and key, query and the embedding of the two tokens'
    distance (content to position), key and that embedding (position to content). The embeddings of distances
    are projected with the matrices of the key and the query; one table serves all layers.
    """

    has_positions = False

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        self.buckets: int = weights.key("attention.relative_buckets_count")
        self.furthest: int = weights.key("attention.relative_max_distance")
        width = self.state_width
        self.tensors: Parts = {
            **self.tensors,
            "distances": (Part("rel_embd", (2 * self.buckets, width), is_table=True),),
            "distances_norm": (Part("rel_embd_norm", (width,), needs_bias=True),),
        }

    def prepare(self, weights: Named, layers: Sequence[Named]) -> None:
        """Project the embeddings of distances with the weights of each layer, once for all passes."""
        apart = layer_norm(weights["distances.weight"], weights, "distances_norm", self.epsilon)
        rows, scale = 2 * self.state_width, 1 / math.sqrt(3 * self.head_width)
        attentions = []
        for layer in layers:
            both = F.linear(apart, layer["qkv.weight"][:rows], layer["qkv.bias"][:rows]) * scale
            queries, keys = both.unflatten(-1, (2, self.heads, -1)).permute(1, 2, 3, 0)
            bias = Distances(queries, keys, self.buckets, self.furthest)
            attentions.append(Attention(scale=scale, bias=bias))
        self.attentions = tuple(attentions)


@dataclass(frozen=True, slots=True, eq=False)
class Distances:
    """The scores of distances. `queries` and `keys` are the scaled embeddings of the distances, projected to
    both [heads, n, 2 · buckets]."""

    queries: Tensor
    keys: Tensor
    buckets: int
    furthest: int

    def __call__(self, query: Tensor, key: Tensor, batch: PackedBatch) -> Tensor:
        """See Attention.bias."""
        index = batch.once("distances", lambda: self._rows(batch.query_grid.columns))
        index = index.expand(*query.shape[:2], -1, -1)
        to_position = (query @ self.keys).gather(-1, index)
        to_content = (key @ self.queries).gather(-1, index.transpose(-1, -2))
        return to_position + to_content.transpose(-1, -2)

    def _rows(self, places: Tensor) -> Tensor:
        """The row of each pair's distance in the table [T, T] (make_log_bucket_position of transformers).

        Distances up to half the buckets have a row each; longer ones share rows on a logarithmic scale that
        ends at `furthest`."""
        distance = places[:, None] - places[None, :]
        middle = self.buckets // 2
        apart = distance.abs().clamp(min=middle).float()
        steps = torch.log(apart / middle) / math.log((self.furthest - 1) / middle)
        far = torch.ceil(steps * (middle - 1)).long() + middle
        bucket = torch.where(distance.abs() <= middle, distance, far * distance.sign())
        return (bucket + self.buckets).clamp(0, 2 * self.buckets - 1)
