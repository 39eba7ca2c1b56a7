"""mGTE (gte-multilingual-reranker), as NewForSequenceClassification of Alibaba-NLP/new-impl computes it."""

from __future__ import annotations

from rerankd.backends.openvino.architectures.bert import Bert
from rerankd.backends.openvino.layers import Node, frequencies, gelu, ints, rotated, rotation, tokens
from rerankd.backends.openvino.runtime import op


class Gte(Bert):
    """BERT with rotary positions and GeGLU. The query, key and value are the rows of one matrix, and so are
    the two halves of GeGLU, whose gate comes second and has no bias."""

    always_biased = False
    has_positions = False

    def body(self, embeddings: Node, mask: Node) -> Node:
        self._rotation = self._rotated_by(tokens(embeddings))
        return super().body(embeddings, mask)

    def mixed(self, query: Node, key: Node, value: Node, mask: Node, layer: str) -> Node:
        # In the last layer only the first token asks: its position is 0, and nothing turns it.
        is_last = layer == f"blk.{self.layers - 1}" and self.pooling == "cls"
        asking = query if is_last else rotated(query, self._rotation)
        return self.attention(asking, rotated(key, self._rotation), value, mask)

    def feed_forward(self, x: Node, layer: str) -> Node:
        both = self.linear(x, f"{layer}.ffn_up", 2 * self.hidden, self.width)
        inner, gate = op.split(both, ints(-1, scalar=True), 2).outputs()
        gated = op.multiply(gelu(gate), inner)
        return self.linear(gated, f"{layer}.ffn_down", self.width, self.hidden)

    def _rotated_by(self, length: Node) -> tuple[Node, Node]:
        """cos and sin [1, 1, tokens, n / 2], with fixed NTK scaling where the model has it: the base times
        the factor, and all frequencies divided by factor^(2 / n) (https://kexue.fm/archives/9706)."""
        size = self.width // self.heads
        factor = self.weights.key("rope.scaling.factor", 1.0)
        base = self.weights.key("rope.freq_base") * factor
        return rotation(length, frequencies(size, base) / factor ** (2 / size))
