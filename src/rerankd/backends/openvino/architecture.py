"""The base class of architectures, with shared layers: matrix with bias, layer norm, attention, pooling.

To add an architecture:
1. Subclass Architecture in a new file of architectures/, and implement `body` and `head`.
2. Add a row to the table in architectures/__init__.py, and the name to `_ARCHITECTURES` in backend.py.
3. If its embeddings are not BERT's (tokens, learned positions, token types), add a case to graph.embedder.
4. Add a checkpoint to the cases of tests/backends/cases.py.

Tensor and metadata names are those of GGUF, such as `blk.0.attn_q.weight`. formats/ translates those of
safetensors checkpoints.
"""

from __future__ import annotations

import numpy as np

from rerankd.backends.openvino import module_head
from rerankd.backends.openvino.layers import GROUP, Node, gelu, ints, mean, quantised
from rerankd.backends.openvino.runtime import op
from rerankd.domain import Pooling
from rerankd.formats.module_head import STEPS, Step
from rerankd.formats.weights import Weights

ACTIVATIONS = {"gelu": gelu, "relu": op.relu, "tanh": op.tanh}
"""Activation functions of a rank head's first layer, by their names in config.json."""


class Architecture:
    """The forward pass of one model as an OpenVINO graph.

    Shapes: `texts` are the inputs of a batch, `tokens` their padded length, `width` the model's hidden size.
    `pooling` "rank" selects the rank head, other values an embedding. With `compressed`, matrices are stored
    in 8 bits.
    """

    default_head_pooling: Pooling = "cls"
    """How the states are pooled for the rank head if the file does not declare it."""
    has_positions = True
    """Whether the model adds a table of positions to its embeddings."""
    always_biased = False
    """Whether each matrix and norm must have a bias; a file without one is then rejected as damaged."""
    epsilon_key = "attention.layer_norm_epsilon"
    """The key of the norms' epsilon."""

    def __init__(self, weights: Weights, pooling: Pooling, *, compressed: bool) -> None:
        self.weights = weights
        self.compressed = compressed
        self.width: int = weights.key("embedding_length")
        self.heads: int = weights.key("attention.head_count")
        self.hidden: int = weights.key("feed_forward_length")
        self.layers: int = weights.key("block_count")
        self.epsilon: float = weights.key(self.epsilon_key)
        self.has_head = pooling == "rank"
        self.pooling = self._head_pooling() if self.has_head else pooling

    def body(self, embeddings: Node, mask: Node) -> Node:
        """Return the states of the last layer [texts, tokens, width], or [texts, 1, width] if only the first
        token is pooled. `mask` is added to attention scores: 0 for a token, MASKED for padding."""
        raise NotImplementedError

    def pooled(self, states: Node, mask: Node) -> Node:
        """Pool the states to one row per text, and apply the rank head if there is one. With the pooling
        "none", project the state of each token."""
        steps: tuple[Step, ...] = self.weights.key(STEPS, ())
        if self.pooling == "none":
            return module_head.graph(states, self.weights, self.width, steps)
        row = op.squeeze(states, ints(1)) if self.pooling == "cls" else mean(states, mask)
        if not self.has_head:
            return row
        return module_head.graph(row, self.weights, self.width, steps) if steps else self.head(row)

    def head(self, row: Node) -> Node:
        """Return the logits [texts, 1] of the rank head for pooled states [texts, width]."""
        raise NotImplementedError

    def logit(self, row: Node) -> Node:
        """Return the score [texts, 1] of a rank head's last layer: the logit of its label; with two labels,
        the logit of the second minus that of the first, which is the log-odds of their softmax."""
        if self.weights.rows("cls.output.weight") != 2:
            return self.linear(row, "cls.output", 1, self.width)
        matrix = self.weights.array("cls.output.weight", (2, self.width))
        product = op.matmul(row, op.constant(matrix[1:] - matrix[:1]), False, True)
        if not self.weights.has("cls.output.bias"):
            return product
        bias = self.weights.array("cls.output.bias", (2,))
        return op.add(product, op.constant(bias[1:] - bias[:1]))

    def _head_pooling(self) -> Pooling:
        said = self.weights.key("classifier.pooling_type", 0)
        return {1: "mean", 2: "cls"}.get(said, self.default_head_pooling)  # type: ignore[return-value]

    def linear(self, x: Node, name: str, rows: int, columns: int, part: slice = slice(None)) -> Node:
        """Return x · weightᵀ + bias, where `part` selects rows of the weight matrix [rows, columns]. The bias
        is optional unless `always_biased`."""
        matrix = self.weights.array(f"{name}.weight", (rows, columns))[part]
        fits = self.compressed and rows > 1 and columns % GROUP == 0
        product = op.matmul(x, quantised(matrix) if fits else op.constant(matrix), False, True)
        return self._biased(product, name, rows, part)

    def norm(self, x: Node, name: str, width: int = 0) -> Node:
        """Apply layer normalisation over the last axis, of `width` numbers (0: the model's width)."""
        width = width or self.width
        normed = op.mvn(x, ints(-1), True, self.epsilon, "inside_sqrt")
        scaled = op.multiply(normed, op.constant(self.weights.array(f"{name}.weight", (width,))))
        return self._biased(scaled, name, width)

    def _biased(self, x: Node, name: str, rows: int, part: slice = slice(None)) -> Node:
        if not self.always_biased and not self.weights.has(f"{name}.bias"):
            return x
        return op.add(x, op.constant(self.weights.array(f"{name}.bias", (rows,))[part]))

    def split_heads(self, x: Node) -> Node:
        """Reshape [texts, tokens, width] to [texts, heads, tokens, width / heads]."""
        parts = op.reshape(x, ints(0, 0, self.heads, self.width // self.heads), True)
        return op.transpose(parts, ints(0, 2, 1, 3))

    def attention(self, query: Node, key: Node, value: Node, mask: Node, scale: float | None = None) -> Node:
        """Apply scaled dot-product attention to [texts, heads, tokens, n]. Returns [texts, tokens, width].
        `mask` is added to the products of queries and keys times `scale` (None: 1/√n)."""
        scaling = () if scale is None else (op.constant(np.float32(scale)),)
        mixed = op.scaled_dot_product_attention(query, key, value, mask, *scaling)
        return op.reshape(op.transpose(mixed, ints(0, 2, 1, 3)), ints(0, 0, self.width), True)
