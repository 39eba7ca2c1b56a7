"""The ModernBERT architecture. It computes the same as transformers' ModernBertForSequenceClassification."""

from __future__ import annotations

from rerankd.backends.openvino.architecture import Architecture
from rerankd.backends.openvino.layers import (
    Node,
    band,
    first,
    frequencies,
    gelu,
    ints,
    rotated,
    rotation,
    seen_any,
    tokens,
)
from rerankd.backends.openvino.runtime import op
from rerankd.domain import Pooling


class ModernBert(Architecture):
    """ModernBERT: pre-normalisation, rotary positions, GeGLU, and local attention in most layers."""

    default_head_pooling: Pooling = "mean"
    has_positions = False

    def body(self, embeddings: Node, mask: Node) -> Node:
        x = self.norm(embeddings, "token_embd_norm")
        length = tokens(embeddings)
        window = self.weights.key("attention.sliding_window")
        local = op.add(mask, band(length, window // 2))
        # Tokens that fill up a query are not seen; those far from all others then see none, and read nothing.
        sees = seen_any(local) if self.pooling == "none" else None
        rotations = {
            "global": self._rotation(length, self.weights.key("rope.freq_base")),
            "local": self._rotation(length, self.weights.key("rope.freq_base_swa", 10000.0)),
        }
        for layer in range(self.layers):
            name = f"blk.{layer}"
            is_global = self._is_global(layer)
            # The first layer has no attention norm: the embeddings are already normalised.
            is_normed = layer > 0 or self.weights.has(f"{name}.attn_norm.weight")
            normed = self.norm(x, f"{name}.attn_norm") if is_normed else x
            qkv = self.linear(normed, f"{name}.attn_qkv", 3 * self.width, self.width)
            query, key, value = map(self.split_heads, op.split(qkv, ints(-1, scalar=True), 3).outputs())
            turned = rotations["global" if is_global else "local"]
            query, key = rotated(query, turned), rotated(key, turned)
            mixed = self.attention(query, key, value, mask if is_global else local)
            if sees is not None and not is_global:
                mixed = op.multiply(mixed, sees)
            x = op.add(x, self.linear(mixed, f"{name}.attn_output", self.width, self.width))
            normed = self.norm(x, f"{name}.ffn_norm")
            both = self.linear(normed, f"{name}.ffn_up", 2 * self.hidden, self.width)
            inner, gate = op.split(both, ints(-1, scalar=True), 2).outputs()
            gated = op.multiply(gelu(inner), gate)
            x = op.add(x, self.linear(gated, f"{name}.ffn_down", self.width, self.hidden))
        states = self.norm(x, "output_norm")
        return first(states) if self.pooling == "cls" else states

    def head(self, row: Node) -> Node:
        if self.weights.has("cls.weight"):
            row = gelu(self.linear(row, "cls", self.width, self.width))
        if self.weights.has("cls.norm.weight"):
            row = self.norm(row, "cls.norm")
        return self.logit(row)

    def _is_global(self, layer: int) -> bool:
        pattern = self.weights.key("attention.sliding_window_pattern", 3)
        if isinstance(pattern, tuple):  # one flag per layer: True for local
            return not pattern[layer]
        return bool(layer % pattern == 0)

    def _rotation(self, length: Node, base: float) -> tuple[Node, Node]:
        """Return cos and sin [1, 1, tokens, n / 2] for each position and pair of coordinates."""
        return rotation(length, frequencies(self.width // self.heads, base))
