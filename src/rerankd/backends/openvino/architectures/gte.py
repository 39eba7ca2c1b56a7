"""mGTE (gte-multilingual-reranker), as NewForSequenceClassification of Alibaba-NLP/new-impl computes it."""

from __future__ import annotations

from rerankd.backends.openvino.architectures.bert import Bert
from rerankd.backends.openvino.layers import Node, frequencies, gelu, ints, rotated, rotation, tokens
from rerankd.backends.openvino.runtime import op


class Gte(Bert):
    """mGTE: BERT with rotary positions and GeGLU. Query, key and value are joined by rows, and so are the two
    halves of GeGLU's matrix, the gate second, which has no bias."""

    always_biased = False
    has_positions = False

    def body(self, embeddings: Node, mask: Node) -> Node:
        self._rotation = self._rotated_by(tokens(embeddings))
        return super().body(embeddings, mask)

    def mixed(self, query: Node, key: Node, value: Node, mask: Node, layer: str) -> Node:
        # If the last layer's only query is the first token's, its position is 0, so it is not rotated.
        is_last = layer == f"blk.{self.layers - 1}" and self.pooling == "cls"
        rotated_query = query if is_last else rotated(query, self._rotation)
        return self.attention(rotated_query, rotated(key, self._rotation), value, mask)

    def feed_forward(self, x: Node, layer: str) -> Node:
        both = self.linear(x, f"{layer}.ffn_up", 2 * self.hidden, self.width)
        inner, gate = op.split(both, ints(-1, scalar=True), 2).outputs()
        gated = op.multiply(gelu(gate), inner)
        return self.linear(gated, f"{layer}.ffn_down", self.width, self.hidden)

    def _rotated_by(self, length: Node) -> tuple[Node, Node]:
        """Return cos and sin [1, 1, tokens, n / 2]. The scaling factor divides all frequencies."""
        base = frequencies(self.width // self.heads, self.weights.key("rope.freq_base"))
        return rotation(length, base / self.weights.key("rope.scaling.factor", 1.0))
