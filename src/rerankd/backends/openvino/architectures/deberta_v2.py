"""DeBERTa-v2 and -v3, as DebertaV2ForSequenceClassification of transformers computes them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.openvino.architectures.bert import Bert
from rerankd.backends.openvino.layers import Node, first, ints, tokens
from rerankd.backends.openvino.runtime import op
from rerankd.domain import Pooling
from rerankd.formats.weights import Floats, Weights


def rows(distances: NDArray[np.int64], buckets: int, furthest: int) -> NDArray[np.int64]:
    """Return the row of each distance in the table of 2 · `buckets` embeddings (make_log_bucket_position of
    transformers). Distances up to half the buckets have a row each; longer ones share rows on a logarithmic
    scale that ends at `furthest`."""
    middle = buckets // 2
    apart = np.maximum(np.abs(distances), middle).astype(np.float32)
    steps = np.log(apart / np.float32(middle)) / np.log(np.float32((furthest - 1) / middle))
    far = np.ceil(steps * np.float32(middle - 1)).astype(np.int64) + middle
    bucket = np.where(np.abs(distances) <= middle, distances, far * np.sign(distances))
    found: NDArray[np.int64] = np.clip(bucket + buckets, 0, 2 * buckets - 1)
    return found


class DebertaV2(Bert):
    """DeBERTa: BERT with disentangled attention, without absolute positions.

    An attention score is the sum of three products: query and key, query and the embedding of the two tokens'
    distance (content to position), key and that embedding (position to content). The embeddings of distances
    are projected with the matrices of the key and the query; one table serves all layers.
    """

    has_positions = False

    def __init__(self, weights: Weights, pooling: Pooling, *, compressed: bool) -> None:
        super().__init__(weights, pooling, compressed=compressed)
        self._buckets: int = weights.key("attention.relative_buckets_count")
        self._longest: int = weights.key("context_length")
        self._apart = self._embeddings()

    def body(self, embeddings: Node, mask: Node) -> Node:
        length = tokens(embeddings)
        two = op.multiply(length, ints(2, scalar=True))
        start = op.subtract(ints(self._longest, scalar=True), length)
        places = op.range(start, op.add(start, two), ints(1, scalar=True), "i64")
        distances = np.arange(self._longest - 1, -self._longest - 1, -1)
        furthest = self.weights.key("attention.relative_max_distance")
        # The table rows of the 2 T distances from T - 1 down to -T (T tokens), and from 1 - T up to T.
        self._falling, self._rising = (
            op.gather(op.constant(rows(one, self._buckets, furthest)), places, ints(0))
            for one in (distances, -distances)
        )
        self._length, self._two_lengths = length, two
        states = super().body(embeddings, mask)
        return first(states) if self.pooling == "cls" else states

    def asking(self, x: Node, layer: int) -> Node:
        return x  # _by_distance needs the queries of all tokens

    def mixed(self, query: Node, key: Node, value: Node, mask: Node, layer: str) -> Node:
        scale = 1 / math.sqrt(3 * (self.width // self.heads))
        to_position = self._by_distance(query, self._position(layer, "k"), self._falling)
        to_content = self._by_distance(key, self._position(layer, "q"), self._rising)
        both = op.add(to_position, op.transpose(to_content, ints(0, 1, 3, 2)))
        bias = op.multiply(both, op.constant(np.float32(scale)))
        return self.attention(query, key, value, op.add(bias, mask), scale)

    def _embeddings(self) -> Floats:
        """Return the embeddings of distances [2 · buckets, width], with their layer normalisation applied."""
        table = self.weights.array("rel_embd.weight", (2 * self._buckets, self.width))
        centred = table - table.mean(axis=1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + self.epsilon)
        scale, shift = (self.weights.array(f"rel_embd_norm.{of}", (self.width,)) for of in ("weight", "bias"))
        normed: Floats = (centred / spread * scale + shift).astype(np.float32)
        return normed

    def _position(self, layer: str, part: str) -> Node:
        """Project the embeddings of distances to queries or keys of a layer [heads, 2 · buckets, n]."""
        matrix = self.weights.array(f"{layer}.attn_{part}.weight", (self.width, self.width))
        bias = self.weights.array(f"{layer}.attn_{part}.bias", (self.width,))
        rows = (self._apart @ matrix.T + bias).reshape(2 * self._buckets, self.heads, -1)
        return op.constant(np.ascontiguousarray(rows.transpose(1, 0, 2)))

    def _by_distance(self, states: Node, table: Node, rows: Node) -> Node:
        """Return the products [texts, heads, T, T] of each state [texts, heads, T, n] with the embedding of
        its distance to each token.

        First the products with the embeddings of all 2 T distances (`rows` of the table) are computed. The
        wanted ones of token i begin at column T - 1 - i. So after the first T - 1 numbers are removed, rows
        of 2 T - 1 instead of 2 T columns have them at their start.
        """
        found = op.gather(table, rows, ints(1))
        products = op.matmul(states, op.unsqueeze(found, ints(0)), False, True)
        flat = op.reshape(products, ints(0, 0, -1), True)
        narrow = op.subtract(self._two_lengths, ints(1, scalar=True))
        start = op.subtract(self._length, ints(1, scalar=True))
        stop = op.add(start, op.multiply(self._length, narrow))
        kept = op.slice(flat, *(op.unsqueeze(one, ints(0)) for one in (start, stop)), ints(1), ints(2))
        shape = op.concat([ints(0, 0), *(op.unsqueeze(one, ints(0)) for one in (self._length, narrow))], 0)
        skewed = op.reshape(kept, shape, True)
        return op.slice(skewed, ints(0), op.unsqueeze(self._length, ints(0)), ints(1), ints(3))
