"""What an architecture is, and what encoders share: matrices with a bias, layer normalisation, attention."""

from __future__ import annotations

from rerankd.backends.openvino.layers import GROUP, Node, ints, mean, quantised
from rerankd.backends.openvino.runtime import op
from rerankd.domain import Pooling
from rerankd.formats.weights import Weights


class Architecture:
    """What the architectures share."""

    default_head_pooling: Pooling = "cls"
    always_biased = False
    """Whether each matrix and norm has a bias. One that is missing was lost then."""

    def __init__(self, weights: Weights, pooling: Pooling, *, compressed: bool) -> None:
        self.weights = weights
        self.compressed = compressed
        self.width: int = weights.key("embedding_length")
        self.heads: int = weights.key("attention.head_count")
        self.hidden: int = weights.key("feed_forward_length")
        self.layers: int = weights.key("block_count")
        self.epsilon: float = weights.key("attention.layer_norm_epsilon")
        self.has_head = pooling == "rank"
        self.pooling = self._head_pooling() if self.has_head else pooling

    def body(self, embeddings: Node, mask: Node) -> Node:
        """The last layer's states [texts, tokens, width]; [texts, 1, width] where only the first counts."""
        raise NotImplementedError

    def pooled(self, states: Node, mask: Node) -> Node:
        """One row for each text."""
        row = op.squeeze(states, ints(1)) if self.pooling == "cls" else mean(states, mask)
        return self.head(row) if self.has_head else row

    def head(self, row: Node) -> Node:
        """[texts, width] -> logits [texts, 1]."""
        raise NotImplementedError

    def _head_pooling(self) -> Pooling:
        said = self.weights.key("classifier.pooling_type", 0)
        return {1: "mean", 2: "cls"}.get(said, self.default_head_pooling)  # type: ignore[return-value]

    def linear(self, x: Node, name: str, rows: int, columns: int, part: slice = slice(None)) -> Node:
        """x · weightᵀ + bias, where there is one, of all rows or a part of them."""
        matrix = self.weights.array(f"{name}.weight", (rows, columns))[part]
        fits = self.compressed and rows > 1 and columns % GROUP == 0
        product = op.matmul(x, quantised(matrix) if fits else op.constant(matrix), False, True)
        return self._biased(product, name, rows, part)

    def norm(self, x: Node, name: str) -> Node:
        """Layer normalisation over the last axis."""
        normed = op.mvn(x, ints(-1), True, self.epsilon, "inside_sqrt")
        scaled = op.multiply(normed, op.constant(self.weights.array(f"{name}.weight", (self.width,))))
        return self._biased(scaled, name, self.width)

    def _biased(self, x: Node, name: str, rows: int, part: slice = slice(None)) -> Node:
        if not self.always_biased and not self.weights.has(f"{name}.bias"):
            return x
        return op.add(x, op.constant(self.weights.array(f"{name}.bias", (rows,))[part]))

    def split_heads(self, x: Node) -> Node:
        """[texts, tokens, width] -> [texts, heads, tokens, width / heads]."""
        parts = op.reshape(x, ints(0, 0, self.heads, self.width // self.heads), True)
        return op.transpose(parts, ints(0, 2, 1, 3))

    def attention(self, query: Node, key: Node, value: Node, mask: Node) -> Node:
        """Of heads [texts, heads, tokens, n] -> [texts, tokens, width]."""
        mixed = op.scaled_dot_product_attention(query, key, value, mask)
        return op.reshape(op.transpose(mixed, ints(0, 2, 1, 3)), ints(0, 0, self.width), True)
