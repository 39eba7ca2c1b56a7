"""Llama, as LlamaForCausalLM of transformers computes it, and as a model that reads texts in both directions
(llama-nemotron-rerank)."""

from __future__ import annotations

from rerankd.backends.openvino.architecture import Architecture
from rerankd.backends.openvino.architectures.qwen3 import Qwen3
from rerankd.backends.openvino.decoder import View
from rerankd.backends.openvino.layers import Node, first, rotation, tokens
from rerankd.domain import Pooling
from rerankd.formats import llama_rope
from rerankd.formats.weights import Floats, Weights

_OF_HEADS = ("attn_q_norm.weight", "attn_k_norm.weight")


class Llama(Qwen3):
    """Llama: Qwen3 without norms of heads, and with scaled rotary positions from Llama 3.1 on."""

    tensors = tuple(name for name in Qwen3.tensors if name not in _OF_HEADS)
    optional = (llama_rope.DIVISORS,)


class _Whole:
    """What attention sees in a text that is read at once, in both directions (see decoder.Seen)."""

    def __init__(self, view: View) -> None:
        self.views = [(view, view)]

    def last(self, x: Node) -> Node:
        return x  # of the last layer, too, all states are read

    def with_prefix(self, own: Node, at: int) -> Node:
        return own


class LlamaBidirectional(Architecture):
    """Llama's layers without a causal mask, as an encoder. The rank head is one row."""

    default_head_pooling: Pooling = "mean"
    has_positions = False
    epsilon_key = "attention.layer_norm_rms_epsilon"

    def __init__(self, weights: Weights, pooling: Pooling, *, compressed: bool) -> None:
        super().__init__(weights, pooling, compressed=compressed)
        self._layers = Llama(weights, compressed=compressed)

    def body(self, embeddings: Node, mask: Node) -> Node:
        frequencies: Floats = self._layers.kinds[0].frequencies.astype("float32")
        seen = _Whole(View(rotation(tokens(embeddings), frequencies), mask))
        x = embeddings
        for at in range(self.layers):
            x, *_ = self._layers.layer(x, at, seen)
        states = self._layers.norm(x, "output_norm")
        return first(states) if self.pooling == "cls" else states

    def head(self, row: Node) -> Node:
        return self.logit(row)
