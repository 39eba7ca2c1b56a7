"""An encoder's weights as an OpenVINO graph of its forward pass.

Inputs: `embeddings` f32 [texts, tokens, width], what the first layer's normalisation reads, and `mask` f32
[texts, 1, 1, tokens], 0 for a token and a large negative number for padding. Output: f32 [texts, 1], the rank
head's logit, or [texts, width], the pooled embedding (not normalised).

Constants are copied into the graph. (Sharing numpy's memory would save the copy, but OpenVINO does not keep
the array alive, and freed memory becomes weights without an error.)

Sources of the formulas: BertModel, BertForSequenceClassification, XLMRobertaForSequenceClassification and
ModernBertForSequenceClassification of transformers. GELU is the erf form, as in the models; llama.cpp's is
the tanh form for `bert`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from rerankd.backends.openvino.runtime import op, ov
from rerankd.domain import Pooling
from rerankd.formats.weights import Floats, Table, Weights

Node = Any
"""OpenVINO's nodes have no types of use."""

MASKED = -1e9
# Weights that share a scale when they are compressed; OpenVINO takes them as they are into its products.
_GROUP = 32


@dataclass(frozen=True, slots=True)
class Embedder:
    """What stands before the graph: rows of tables, looked up for the tokens of a call only."""

    tokens: Table
    positions: Floats | None
    """[window, width]; the first token type is added to it. None where the model has rotary positions."""
    second: Floats | None = None
    """[width]: what the second token type has more than the first. None where there is one only."""

    def __call__(self, ids: np.ndarray[Any, Any], seconds: np.ndarray[Any, Any]) -> Floats:
        """Ids [texts, tokens], and where the second type begins in each -> [texts, tokens, width]."""
        found = self.tokens[ids.ravel()].reshape(*ids.shape, -1)
        if self.positions is not None:
            found = found + self.positions[: ids.shape[1]]
        if self.second is not None:
            found[np.arange(ids.shape[1]) >= seconds[:, None]] += self.second
        return found


def embedder(weights: Weights) -> Embedder:
    """The embedding tables. Of a GGUF file all tokens have the first token type, as llama.cpp has it; that is
    right for what is served from one."""
    width = weights.key("embedding_length")
    tokens = weights.table("token_embd.weight", weights.rows("token_embd.weight"), width)
    if weights.architecture == "modern-bert":
        return Embedder(tokens, None)
    positions = weights.array("position_embd.weight", (weights.key("context_length"), width))
    # DistilBERT has none, and a vocabulary of word pieces.
    if weights.has("token_types.weight") or weights.values.get("tokenizer.ggml.model") != "bert":
        count = weights.rows("token_types.weight")
        types = weights.array("token_types.weight", (count, width))
        return Embedder(tokens, positions + types[0], types[1] - types[0] if count > 1 else None)
    return Embedder(tokens, positions)


def build(weights: Weights, pooling: Pooling, *, compressed: bool = False) -> ov.Model:
    """The graph of a model file; `pooling` is `rank` for its head, else how an embedding is pooled.

    `compressed` keeps matrices in 8 bits and a scale for each 32 of them, as Q8_0 does: 0.8 GB instead of 2.5
    for BERT-large's shape, at about the same speed with AVX2, and raw scores that move by some hundredths.

    Raises ModelFileError where a tensor or a key is missing.
    """
    width = weights.key("embedding_length")
    embeddings = op.parameter([-1, -1, width], np.float32, name="embeddings")
    mask = op.parameter([-1, 1, 1, -1], np.float32, name="mask")
    kind = {"bert": _Bert, "modern-bert": _ModernBert}[weights.architecture]
    model = kind(weights, pooling, compressed=compressed)
    result = model.pooled(model.body(embeddings, mask), mask)
    result.output(0).get_tensor().set_names({"result"})
    return ov.Model([result], [embeddings, mask], weights.architecture)


class _Encoder:
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
        row = op.squeeze(states, _ints(1)) if self.pooling == "cls" else _mean(states, mask)
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
        fits = self.compressed and rows > 1 and columns % _GROUP == 0
        product = op.matmul(x, _compressed(matrix) if fits else op.constant(matrix), False, True)
        return self._biased(product, name, rows, part)

    def norm(self, x: Node, name: str) -> Node:
        """Layer normalisation over the last axis."""
        normed = op.mvn(x, _ints(-1), True, self.epsilon, "inside_sqrt")
        scaled = op.multiply(normed, op.constant(self.weights.array(f"{name}.weight", (self.width,))))
        return self._biased(scaled, name, self.width)

    def _biased(self, x: Node, name: str, rows: int, part: slice = slice(None)) -> Node:
        if not self.always_biased and not self.weights.has(f"{name}.bias"):
            return x
        return op.add(x, op.constant(self.weights.array(f"{name}.bias", (rows,))[part]))

    def split_heads(self, x: Node) -> Node:
        """[texts, tokens, width] -> [texts, heads, tokens, width / heads]."""
        parts = op.reshape(x, _ints(0, 0, self.heads, self.width // self.heads), True)
        return op.transpose(parts, _ints(0, 2, 1, 3))

    def attention(self, query: Node, key: Node, value: Node, mask: Node) -> Node:
        """Of heads [texts, heads, tokens, n] -> [texts, tokens, width]."""
        mixed = op.scaled_dot_product_attention(query, key, value, mask)
        return op.reshape(op.transpose(mixed, _ints(0, 2, 1, 3)), _ints(0, 0, self.width), True)


class _Bert(_Encoder):
    """BERT and XLM-R: normalisation after each part; the head is RoBERTa's (dense, tanh, output), and so are
    BERT's pooler and classifier."""

    always_biased = True

    def body(self, embeddings: Node, mask: Node) -> Node:
        x = self.norm(embeddings, "token_embd_norm")
        for layer in range(self.layers):
            name = f"blk.{layer}"
            # Nothing reads the other tokens' last states.
            asking = _first(x) if layer == self.layers - 1 and self.pooling == "cls" else x
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
        """x · weightᵀ + bias of the query (q), key (k) or value (v); jina-reranker-v2's files hold the three
        as the rows of one matrix."""
        merged = f"{layer}.attn_qkv"
        if not self.weights.has(f"{merged}.weight"):
            return self.linear(x, f"{layer}.attn_{part}", self.width, self.width)
        first = "qkv".index(part) * self.width
        return self.linear(x, merged, 3 * self.width, self.width, slice(first, first + self.width))

    def head(self, row: Node) -> Node:
        if self.weights.has("cls.weight"):
            row = op.tanh(self.linear(row, "cls", self.width, self.width))
        return self.linear(row, "cls.output", 1, self.width)


class _ModernBert(_Encoder):
    """ModernBERT: rotary positions, local attention in most layers, GeGLU, normalisation before each part."""

    default_head_pooling: Pooling = "mean"

    def body(self, embeddings: Node, mask: Node) -> Node:
        x = self.norm(embeddings, "token_embd_norm")
        length = op.squeeze(op.gather(op.shape_of(embeddings), _ints(1), _ints(0)), _ints(0))
        window = self.weights.key("attention.sliding_window")
        local = op.add(mask, _band(length, window // 2))
        rotations = {
            "global": self._rotation(length, self.weights.key("rope.freq_base")),
            "local": self._rotation(length, self.weights.key("rope.freq_base_swa", 10000.0)),
        }
        for layer in range(self.layers):
            name = f"blk.{layer}"
            is_global = self._is_global(layer)
            # The first layer has none: it reads what the embeddings' norm gives.
            is_normed = layer > 0 or self.weights.has(f"{name}.attn_norm.weight")
            normed = self.norm(x, f"{name}.attn_norm") if is_normed else x
            qkv = self.linear(normed, f"{name}.attn_qkv", 3 * self.width, self.width)
            query, key, value = map(self.split_heads, op.split(qkv, _ints(-1, scalar=True), 3).outputs())
            rotation = rotations["global" if is_global else "local"]
            query, key = _rotated(query, rotation), _rotated(key, rotation)
            mixed = self.attention(query, key, value, mask if is_global else local)
            x = op.add(x, self.linear(mixed, f"{name}.attn_output", self.width, self.width))
            normed = self.norm(x, f"{name}.ffn_norm")
            both = self.linear(normed, f"{name}.ffn_up", 2 * self.hidden, self.width)
            inner, gate = op.split(both, _ints(-1, scalar=True), 2).outputs()
            gated = op.multiply(op.gelu(inner, "erf"), gate)
            x = op.add(x, self.linear(gated, f"{name}.ffn_down", self.width, self.hidden))
        states = self.norm(x, "output_norm")
        return _first(states) if self.pooling == "cls" else states

    def head(self, row: Node) -> Node:
        if self.weights.has("cls.weight"):
            row = op.gelu(self.linear(row, "cls", self.width, self.width), "erf")
        if self.weights.has("cls.norm.weight"):
            row = self.norm(row, "cls.norm")
        return self.linear(row, "cls.output", 1, self.width)

    def _is_global(self, layer: int) -> bool:
        pattern = self.weights.key("attention.sliding_window_pattern", 3)
        if isinstance(pattern, tuple):  # one flag a layer: whether it is local
            return not pattern[layer]
        return bool(layer % pattern == 0)

    def _rotation(self, length: Node, base: float) -> tuple[Node, Node]:
        """cos and sin [1, 1, tokens, n / 2] for each position and pair of coordinates."""
        size = self.width // self.heads
        frequencies = (base ** (-np.arange(0, size, 2) / size)).astype(np.float32)
        angles = op.multiply(op.unsqueeze(_count(length), _ints(1)), op.constant(frequencies[None, :]))
        angles = op.unsqueeze(angles, _ints(0, 1))
        return op.cos(angles), op.sin(angles)


def _compressed(matrix: Floats) -> Node:
    """A matrix kept as 8-bit numbers and a scale for each group of them."""
    rows, columns = matrix.shape
    groups = matrix.reshape(rows, columns // _GROUP, _GROUP)
    scales = np.maximum(np.abs(groups).max(axis=2, keepdims=True) / 127, np.finfo(np.float32).tiny)
    numbers = np.rint(groups / scales).astype(np.int8)
    scaled = op.multiply(op.convert(op.constant(numbers), np.float32), op.constant(scales))
    return op.reshape(scaled, _ints(rows, columns), False)


def _rotated(x: Node, rotation: tuple[Node, Node]) -> Node:
    """Rotary positions, the pairs of coordinates being (i, i + n / 2)."""
    cos, sin = rotation
    a, b = op.split(x, _ints(-1, scalar=True), 2).outputs()
    first = op.subtract(op.multiply(a, cos), op.multiply(b, sin))
    second = op.add(op.multiply(b, cos), op.multiply(a, sin))
    return op.concat([first, second], -1)


def _count(length: Node) -> Node:
    """0, 1, … length - 1 as floats."""
    zero, one = (op.constant(np.array(value, np.int64)) for value in (0, 1))
    return op.convert(op.range(zero, length, one, "i64"), np.float32)


def _band(length: Node, reach: int) -> Node:
    """[1, 1, tokens, tokens]: 0 where two tokens are at most `reach` apart, else MASKED."""
    places = _count(length)
    apart = op.abs(op.subtract(op.unsqueeze(places, _ints(1)), op.unsqueeze(places, _ints(0))))
    far = op.greater(apart, op.constant(np.float32(reach)))
    band = op.select(far, op.constant(np.float32(MASKED)), op.constant(np.float32(0)))
    return op.unsqueeze(band, _ints(0, 1))


def _mean(states: Node, mask: Node) -> Node:
    """The mean state of the tokens that are no padding: [texts, tokens, width] -> [texts, width]."""
    real = op.convert(op.greater(mask, op.constant(np.float32(MASKED / 2))), np.float32)
    real = op.reshape(real, _ints(0, -1, 1), True)
    total = op.reduce_sum(op.multiply(states, real), _ints(1))
    return op.divide(total, op.reduce_sum(real, _ints(1)))


def _first(states: Node) -> Node:
    """[texts, tokens, width] -> [texts, 1, width], the first token's."""
    return op.slice(states, _ints(0), _ints(1), _ints(1), _ints(1))


def _ints(*values: int, scalar: bool = False) -> Node:
    return op.constant(np.array(values[0] if scalar else values, np.int64))
