"""The BERT architecture, also of XLM-R (XLM-RoBERTa) and DistilBERT.

It computes the same as BertModel, BertForSequenceClassification and XLMRobertaForSequenceClassification of
transformers. GELU is the erf form, as in those models; llama.cpp uses the tanh form for `bert`.
"""

from __future__ import annotations

from rerankd.backends.openvino.architecture import ACTIVATIONS, Architecture
from rerankd.backends.openvino.layers import Node, first, gelu
from rerankd.backends.openvino.runtime import op
from rerankd.backends.worker.embedder import embedding_width


class Bert(Architecture):
    """BERT: post-normalisation, and a rank head of dense, tanh and output layer. That is RoBERTa's head, and
    equals BERT's pooler and classifier."""

    always_biased = True

    def body(self, embeddings: Node, mask: Node) -> Node:
        width = embedding_width(self.weights)
        x = self.norm(embeddings, "token_embd_norm", width)
        if width != self.width:
            x = self.linear(x, "token_embd_project", self.width, width)
        for layer in range(self.layers):
            name = f"blk.{layer}"
            asking = self.asking(x, layer)
            query, key, value = (
                self.split_heads(self.projection(states, name, part))
                for part, states in (("q", asking), ("k", x), ("v", x))
            )
            mixed = self.mixed(query, key, value, mask, name)
            mixed = self.linear(mixed, f"{name}.attn_output", self.width, self.width)
            x = self.norm(op.add(asking, mixed), f"{name}.attn_output_norm")
            x = self.norm(op.add(x, self.feed_forward(x, name)), f"{name}.layer_output_norm")
        return x

    def asking(self, x: Node, layer: int) -> Node:
        """Return the states of the tokens whose queries a layer needs. In the last layer that is the first
        token if only its state is pooled."""
        return first(x) if layer == self.layers - 1 and self.pooling == "cls" else x

    def mixed(self, query: Node, key: Node, value: Node, mask: Node, layer: str) -> Node:
        """Apply attention to heads [texts, heads, tokens, n]. Returns [texts, tokens, width]."""
        return self.attention(query, key, value, mask)

    def feed_forward(self, x: Node, layer: str) -> Node:
        """Apply the MLP of a layer."""
        inner = gelu(self.linear(x, f"{layer}.ffn_up", self.hidden, self.width))
        return self.linear(inner, f"{layer}.ffn_down", self.width, self.hidden)

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
            activation = ACTIVATIONS[self.weights.key("classifier.activation", "tanh")]
            row = activation(self.linear(row, "cls", self.width, self.width))
        return self.logit(row)
