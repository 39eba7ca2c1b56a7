"""Qwen3 and Qwen2, as Qwen3ForCausalLM and Qwen2ForCausalLM of transformers compute them.

Rotary positions pair the coordinates i and i + n / 2 of a head. `G` query heads share a key and a value head
(grouped-query attention): their queries are put behind each other on the token axis, so no key is copied.
"""

from __future__ import annotations

from typing import ClassVar

from rerankd.backends.openvino.decoder import Decoder, Seen
from rerankd.backends.openvino.layers import Node, ints, rms_norm, rotated
from rerankd.backends.openvino.runtime import op
from rerankd.formats.weights import Weights


class Qwen3(Decoder):
    """Qwen3: pre-normalisation, norms of each query and key head, gated MLP with SiLU, no bias."""

    tensors: ClassVar[tuple[str, ...]] = (
        "attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight",
        "attn_q_norm.weight", "attn_k_norm.weight",
        "ffn_norm.weight", "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight",
    )  # fmt: skip

    def __init__(self, weights: Weights, *, compressed: bool) -> None:
        super().__init__(weights, compressed=compressed)
        self.hidden: int = weights.key("feed_forward_length")

    def layer(self, x: Node, at: int, seen: Seen) -> tuple[Node, Node, Node]:
        name, is_last = f"blk.{at}", at == self.layers - 1
        view, view_of_last = seen.views[self.kind_of[at]]
        normed = self.norm(x, f"{name}.attn_norm")
        key = rotated(self._heads(normed, name, "k", self.kv_heads), view.rotation)
        value = self._heads(normed, name, "v", self.kv_heads)
        if is_last:  # only the queries of states that are read are needed
            x, normed = seen.last(x), seen.last(normed)
            view = view_of_last
        query = rotated(self._heads(normed, name, "q", self.heads), view.rotation)
        mixed = self._attention(
            query, seen.with_prefix(key, 2 * at), seen.with_prefix(value, 2 * at + 1), view.mask
        )
        size = self.heads * self.head_size
        mixed = self.linear(mixed, f"{name}.attn_output", self.width, size)
        x = op.add(x, self._normed_if_any(mixed, f"{name}.post_attention_norm"))
        normed = self.norm(x, f"{name}.ffn_norm")
        gate = self.activated(self.linear(normed, f"{name}.ffn_gate", self.hidden, self.width))
        inner = op.multiply(gate, self.linear(normed, f"{name}.ffn_up", self.hidden, self.width))
        inner = self.linear(inner, f"{name}.ffn_down", self.width, self.hidden)
        x = op.add(x, self._normed_if_any(inner, f"{name}.post_ffw_norm"))
        return x, key, value

    def activated(self, x: Node) -> Node:
        """Apply the activation function of the MLP."""
        return op.swish(x)

    def attend(self, query: Node, key: Node, value: Node, mask: Node) -> Node:
        """Apply attention to [texts, kv heads, queries or keys, n]; `mask` [·, 1, queries, keys]."""
        return op.scaled_dot_product_attention(query, key, value, mask)

    def _normed_if_any(self, x: Node, name: str) -> Node:
        """Apply a norm that only some architectures have."""
        return self.norm(x, name) if f"{name.rpartition('.')[2]}.weight" in self.tensors else x

    def _heads(self, x: Node, layer: str, part: str, heads: int) -> Node:
        """Project x to queries (q), keys (k) or values (v) [texts, heads, tokens, n]."""
        name = f"{layer}.attn_{part}"
        projected = self.linear(x, name, heads * self.head_size, self.width)
        parts = op.reshape(projected, ints(0, 0, heads, self.head_size), True)
        if f"attn_{part}_norm.weight" in self.tensors:
            parts = rms_norm(parts, self.gain(f"{name}_norm", self.head_size), self.epsilon)
        return op.transpose(parts, ints(0, 2, 1, 3))

    def _attention(self, query: Node, key: Node, value: Node, mask: Node) -> Node:
        """Return [texts, tokens, heads · n]; `mask` [·, 1, T, S] for T queries, S keys and values."""
        group, size = self.heads // self.kv_heads, self.head_size
        queries = op.reshape(query, ints(0, self.kv_heads, -1, size), True)
        # A mask with one row, the same for all queries of a text, is broadcast.
        masks = mask if mask.get_output_partial_shape(0)[2] == 1 else op.concat([mask] * group, 2)
        mixed = self.attend(queries, key, value, masks)
        apart = op.reshape(mixed, ints(0, self.heads, -1, size), True)
        return op.reshape(op.transpose(apart, ints(0, 2, 1, 3)), ints(0, 0, self.heads * size), True)


class Qwen2(Qwen3):
    """Qwen2: Qwen3 without norms of heads, and with biases of query, key and value."""

    tensors = (
        *(name for name in Qwen3.tensors if name not in ("attn_q_norm.weight", "attn_k_norm.weight")),
        "attn_q.bias", "attn_k.bias", "attn_v.bias",
    )  # fmt: skip
