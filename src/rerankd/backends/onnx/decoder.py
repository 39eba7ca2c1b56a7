"""The graph of a causal model, which reads texts behind the keys and values of earlier tokens.

Inputs, with B texts, T own tokens each (padded on the right), P tokens of the prefix (the same for all
texts), and head size n:

    embeddings  f32 [B, T, width]
    cos, sin    f32 [K, T, n / 2]           of positions P, P + 1, … for each of K kinds of layers
    mask        f32 [K, T, P + T]           0 for tokens that a token sees, MASKED for others
    last        i64 [B]                     index of the token of each text whose state is read
    prefix.N    f32 [P, kv heads, n]        keys and values in turns, N from 0 to 2 · layers - 1

Outputs: the keys and values of text 0, likewise [T, kv heads, n] (own.N), and the states that are read,
normalised without the gain of the last norm [B, width] (states).

Rotary positions pair the coordinates i and i + n / 2 of a head. `G` query heads share a key and a value head:
their queries are put behind each other on the token axis.

Source: the models of transformers 5 (Qwen2, Qwen3, Llama, Gemma 1 to 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from onnx import TensorProto

from rerankd.backends.onnx import folding
from rerankd.backends.onnx.attention import Attention, of_each_text
from rerankd.backends.onnx.graph import MICROSOFT, Graph, Matrix, Session
from rerankd.backends.onnx.rotation import Rotation
from rerankd.backends.worker import decoder_tensors, positions
from rerankd.formats import gemma_layers, llama_rope
from rerankd.formats.weights import Floats, Weights

_TENSORS = (
    "attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
    "ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight",
)  # fmt: skip
_HEAD_NORMS = ("attn_q_norm.weight", "attn_k_norm.weight")
_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
_POST_NORMS = ("post_attention_norm.weight", "post_ffw_norm.weight")


class Architecture(NamedTuple):
    """In what an architecture differs from Llama: further tensors of each layer, and whether it is of Gemma's
    family, with scaled embeddings, GELU in its tanh form and a factor of its own in attention."""

    more: tuple[str, ...] = ()
    is_gemma: bool = False


ARCHITECTURES: Mapping[str, Architecture] = {
    "gemma": Architecture(is_gemma=True),
    "gemma2": Architecture(_POST_NORMS, is_gemma=True),
    "gemma3": Architecture((*_POST_NORMS, *_HEAD_NORMS), is_gemma=True),
    "llama": Architecture(),
    "qwen2": Architecture(_BIASES),
    "qwen3": Architecture(_HEAD_NORMS),
}
"""By `general.architecture`. backend.py lists the same names, because it may not import ONNX Runtime."""


class Decoder:
    """The forward pass of one causal model. Raises ModelFileError if the file is damaged."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._of = ARCHITECTURES[weights.architecture]
        self.width: int = weights.key("embedding_length")
        self.layers: int = weights.key("block_count")
        self.heads: int = weights.key("attention.head_count")
        self.kv_heads: int = weights.key("attention.head_count_kv", self.heads)
        self.head_size: int = weights.key("attention.key_length", self.width // self.heads)
        self.hidden: int = weights.key("feed_forward_length")
        self.epsilon: float = weights.key("attention.layer_norm_rms_epsilon")
        self.kinds, self.kind_of = positions.kinds(weights, self.head_size)
        is_gemma = self._of.is_gemma
        scale = gemma_layers.query_scale(weights) if is_gemma else self.head_size**-0.5
        cap: float = weights.key("attn_logit_softcapping", 0.0)
        self._attention = Attention(self.heads, self.kv_heads, self.head_size, scale, cap)
        self._offset: float = weights.key(gemma_layers.NORM_OFFSET, 0.0) if is_gemma else 0.0
        self.rotation = None if _POST_NORMS[0] in self._of.more else Rotation.whole(self.width)
        """The rotation of the states; None if what reads them is rotated instead (see folding.py)."""
        optional = (llama_rope.DIVISORS,) if weights.architecture == "llama" else ()
        decoder_tensors.check(weights, (*_TENSORS, *self._of.more), optional)

    def output_rows(self, rows: Floats) -> Floats:
        """Return rows [·, width] of the output matrix for the states that the graph returns."""
        rows = rows * self.gain("output_norm", self.width)
        return rows if self.rotation is None else self.rotation.turned(rows)

    def gain(self, name: str, size: int) -> Floats:
        """Return the factors [size] of a norm."""
        found: Floats = self._weights.array(f"{name}.weight", (size,)) + self._offset
        return found.astype("float32")

    def session(self, g: Graph) -> Session:
        """Build the graph and compile it."""
        at = _Inputs(g, self)
        x = g.reshape(at.embeddings, -1, self.width)
        if self._of.is_gemma:
            x = g.op("Mul", x, g.const(self.width**0.5))
        if self.rotation is not None:
            x = g.rotate(x, self.rotation)
        outputs: dict[str, str] = {}
        for layer in range(self.layers):
            x, *own = self._layer(g, x, layer, at)
            for one, states in enumerate(own):
                first = g.op("Gather", states, g.const(0, "int64"), axis=0)
                outputs[f"own.{2 * layer + one}"] = g.op("Transpose", first, perm=[1, 0, 2])
        outputs["states"] = self._norm(g, x, None)
        return g.session(outputs)

    def _layer(self, g: Graph, x: str, layer: int, at: _Inputs) -> tuple[str, str, str]:
        """Return the states after a layer [texts · tokens, width], and its own keys and values [texts, kv
        heads, tokens, n]. The last layer returns the states that are read only [texts, width]."""
        name, kind = f"blk.{layer}", self.kind_of[layer]
        is_last = layer == self.layers - 1
        normed = self._norm(g, x, f"{name}.attn_norm")
        sizes = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        q, k, v = (
            (rows * self.head_size, partial(self._projection, name, part)) for part, rows in sizes.items()
        )
        if is_last:  # only the queries of states that are read are needed
            key, value = self._reading(g, normed, f"{name}.attn_norm", k, v)
            x, normed = at.last(x), at.last(normed)
            (query,) = self._reading(g, normed, f"{name}.attn_norm", q)
        else:
            query, key, value = self._reading(g, normed, f"{name}.attn_norm", q, k, v)
        query, key, value = (
            self._heads(g, states, name, part, at)
            for part, states in (("q", query), ("k", key), ("v", value))
        )
        key = at.turned(key, kind)
        query = at.turned_last(query, kind) if is_last else at.turned(query, kind)
        mask = at.mask_of_last(kind) if is_last else at.mask(kind)
        key_and_prefix, value_and_prefix = (
            at.with_prefix(own, 2 * layer + one) for one, own in enumerate((key, value))
        )
        mixed = self._attention(g, at.texts, query, key_and_prefix, value_and_prefix, mask)
        (mixed,) = g.linear(mixed, self.heads * self.head_size, [(self.width, partial(self._output, name))])
        x = g.op("Add", x, self._post_normed(g, mixed, f"{name}.post_attention_norm"))
        normed = self._norm(g, x, f"{name}.ffn_norm")
        both = [(self.hidden, self._matrix(f"{name}.{part}", self.hidden)) for part in ("ffn_gate", "ffn_up")]
        gate, up = self._reading(g, normed, f"{name}.ffn_norm", *both)
        inner = g.op("Mul", self._activated(g, gate), up)
        turn = Rotation.of_blocks(self.hidden)
        down = partial(self._down, name, turn)
        (inner,) = g.linear(g.rotate(inner, turn), self.hidden, [(self.width, down)])
        return g.op("Add", x, self._post_normed(g, inner, f"{name}.post_ffw_norm")), key, value

    def _norm(self, g: Graph, x: str, name: str | None) -> str:
        """Apply a norm of the states. Without a name, or if matrices contain its gain, without its gain."""
        gain = (
            self.gain(name, self.width) if name is not None and self.rotation is None else [1.0] * self.width
        )
        return _rms_norm(g, x, g.const(gain), self.epsilon)

    def _post_normed(self, g: Graph, x: str, name: str) -> str:
        return self._norm(g, x, name) if _POST_NORMS[0] in self._of.more else x

    def _reading(self, g: Graph, x: str, norm: str, *matrices: tuple[int, Matrix]) -> list[str]:
        """Products of normalised states with matrices [rows, width]."""
        fold: Callable[[Floats], Floats]
        if self.rotation is not None:
            fold = partial(folding.reading, gain=self.gain(norm, self.width), rotation=self.rotation)
        else:
            turn = Rotation.of_blocks(self.width)
            x, fold = g.rotate(x, turn), turn.turned
        return g.linear(x, self.width, [(rows, partial(_folded, read, fold)) for rows, read in matrices])

    def _matrix(self, name: str, rows: int) -> Matrix:
        return partial(self._weights.array, f"{name}.weight", (rows, self.width))

    def _projection(self, layer: str, part: str) -> Floats:
        """The matrix of queries (q), keys (k) or values (v)."""
        heads = self.heads if part == "q" else self.kv_heads
        matrix = self._weights.array(f"{layer}.attn_{part}.weight", (heads * self.head_size, self.width))
        return folding.values(matrix, self.head_size) if part == "v" else matrix

    def _output(self, layer: str) -> Floats:
        matrix = self._weights.array(f"{layer}.attn_output.weight", (self.width, self.heads * self.head_size))
        return folding.adding(folding.reading_values(matrix, self.head_size), self.rotation)

    def _down(self, layer: str, turn: Rotation) -> Floats:
        matrix = self._weights.array(f"{layer}.ffn_down.weight", (self.width, self.hidden))
        return turn.turned(folding.adding(matrix, self.rotation))

    def _heads(self, g: Graph, x: str, layer: str, part: str, at: _Inputs) -> str:
        """Queries, keys or values x [texts · tokens, heads · n] as [texts, heads, tokens, n]."""
        heads, name = (self.heads if part == "q" else self.kv_heads), f"{layer}.attn_{part}"
        if f"attn_{part}.bias" in self._of.more:
            bias = self._weights.array(f"{name}.bias", (heads * self.head_size, 1))
            x = g.op(
                "Add", x, g.const(folding.values(bias, self.head_size)[:, 0] if part == "v" else bias[:, 0])
            )
        parts = g.op("Reshape", x, of_each_text(g, at.texts, -1, heads, self.head_size))
        if f"attn_{part}_norm.weight" in self._of.more:
            parts = _rms_norm(g, parts, g.const(self.gain(f"{name}_norm", self.head_size)), self.epsilon)
        return g.op("Transpose", parts, perm=[0, 2, 1, 3])

    def _activated(self, g: Graph, x: str) -> str:
        if self._of.is_gemma:
            return g.op("Gelu", x, approximate="tanh")
        return g.op("QuickGelu", x, of=MICROSOFT, alpha=1.0)  # x · sigmoid(x)


class _Inputs:
    """The inputs of the graph, and what is made of them once."""

    def __init__(self, g: Graph, of: Decoder) -> None:
        self._g, self._of = g, of
        size, count = of.head_size, len(of.kinds)
        self.embeddings = g.input("embeddings", "texts", "tokens", of.width)
        names = ("cos", "sin", "mask")
        tables = [
            g.input(name, count, "tokens", "columns" if name == "mask" else size // 2) for name in names
        ]
        self._last = g.input("last", "texts", kind=TensorProto.INT64)
        self._prefix = [g.input(f"prefix.{at}", "before", of.kv_heads, size) for at in range(2 * of.layers)]
        self.texts = g.op("Shape", self.embeddings, start=0, end=1)
        self._tokens = g.op("Shape", self.embeddings, start=1, end=2)
        # For each kind, cos, sin and mask.
        self._kinds = [
            [g.op("Gather", table, g.const(kind, "int64"), axis=0) for table in tables]
            for kind in range(count)
        ]
        self._rows = g.op("Unsqueeze", self._last, g.ints(1))
        texts = g.op("Range", g.const(0, "int64"), g.op("Squeeze", self.texts), g.const(1, "int64"))
        firsts = g.op("Mul", texts, self._tokens)
        self._flat = g.op("Add", firsts, self._last)
        self._whole = g.ints(0)  # the tokens have the positions of the table, in order

    def last(self, x: str) -> str:
        """The states that are read: [texts · tokens, width] -> [texts, width]."""
        return self._g.op("Gather", x, self._flat, axis=0)

    def turned(self, x: str, kind: int) -> str:
        """Apply rotary positions to queries or keys of all tokens."""
        return self._g.op("RotaryEmbedding", x, self._whole, *self._kinds[kind][:2], of=MICROSOFT)

    def turned_last(self, x: str, kind: int) -> str:
        """Apply rotary positions to the queries of the tokens that are read."""
        return self._g.op("RotaryEmbedding", x, self._rows, *self._kinds[kind][:2], of=MICROSOFT)

    def mask(self, kind: int) -> str:
        return self._kinds[kind][2]

    def mask_of_last(self, kind: int) -> str:
        """What the tokens that are read see [texts, 1, 1, columns]."""
        rows = self._g.op("Gather", self._kinds[kind][2], self._last, axis=0)
        return self._g.op("Unsqueeze", rows, self._g.ints(1, 2))

    def with_prefix(self, own: str, at: int) -> str:
        """Put the keys or values of the prefix before the own ones of each text."""
        g = self._g
        shared = g.op("Transpose", self._prefix[at], perm=[1, 0, 2])
        return g.op("Concat", g.op("Expand", shared, of_each_text(g, self.texts, 1, 1, 1)), own, axis=2)


def _rms_norm(g: Graph, x: str, gain: str, epsilon: float) -> str:
    return g.op("SimplifiedLayerNormalization", x, gain, axis=-1, epsilon=epsilon)


def _folded(read: Matrix, fold: Callable[[Floats], Floats]) -> Floats:
    return fold(read())
