"""The BERT architecture, also of XLM-R (XLM-RoBERTa) and DistilBERT.

It computes the same as BertModel, BertForSequenceClassification and XLMRobertaForSequenceClassification of
transformers. GELU is the erf form, as in those models; llama.cpp uses the tanh form for `bert`.
"""

from __future__ import annotations

from rerankd.backends.openvino.architecture import Architecture
from rerankd.backends.openvino.layers import Node, first
from rerankd.backends.openvino.runtime import op


class Bert(Architecture):
    """BERT: post-normalisation, and a rank head of dense, tanh and output layer. That is RoBERTa's head, and
    equals BERT's pooler and classifier."""

    always_biased = True

    def body(self, embeddings: Node, mask: Node) -> Node:
        x = self.norm(embeddings, "token_embd_norm")
        for layer in range(self.layers):
            name = f"blk.{layer}"
            # In the last layer only the first token needs a query if only its state is pooled.
            asking = first(x) if layer == self.layers - 1 and self.pooling == "cls" else x
            query, key, value = (
                self.split_heads(self.projection(states, name, part))
                for part, states in (("q", asking), ("k", x), ("v", x))
            )
            mixed = self.attention(query, key, value, mask)
            mixed = self.linear(mixed, f"{name}.attn_output", self.width, self.width)
            x = self.norm(op.add(asking, mixed), f"{name}.attn_output_norm")
            inner = op.gelu(self.linear(x, f"{name}.ffn_up", self.hidden, self.width), "erf")
            outer = self.linear(inner, f"{name}.ffn_down", self.width, self.hidden)
            x = self.norm(op.add(x, outer), f"{name}.layer_output_norm")
        return x

    def projection(self, x: Node, layer: str, part: str) -> Node:
        """Project x to the query (q), key (k) or value (v). Files of jina-reranker-v2 hold the three matrices
        joined by rows."""
        merged = f"{layer}.attn_qkv"
        if not self.weights.has(f"{merged}.weight"):
            return self.linear(x, f"{layer}.attn_{part}", self.width, self.width)
        first = "qkv".index(part) * self.width
        return self.linear(x, merged, 3 * self.width, self.width, slice(first, first + self.width))

    def head(self, row: Node) -> Node:
        if self.weights.has("cls.weight"):
            row = op.tanh(self.linear(row, "cls", self.width, self.width))
        return self.linear(row, "cls.output", 1, self.width)
