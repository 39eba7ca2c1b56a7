"""Gemma 1, 2 and 3 (texts), as GemmaForCausalLM, Gemma2ForCausalLM and Gemma3ForCausalLM of transformers
compute them."""

from __future__ import annotations

import numpy as np

from rerankd.backends.openvino.architectures.qwen3 import Qwen3
from rerankd.backends.openvino.layers import Node, capped
from rerankd.backends.openvino.runtime import op
from rerankd.formats import gemma_layers
from rerankd.formats.weights import Floats, Weights

_OF_HEADS = ("attn_q_norm.weight", "attn_k_norm.weight")


class Gemma(Qwen3):
    """Gemma: scaled embeddings, GELU in its tanh form, and no norms of heads."""

    tensors = tuple(name for name in Qwen3.tensors if name not in _OF_HEADS)

    def __init__(self, weights: Weights, *, compressed: bool) -> None:
        super().__init__(weights, compressed=compressed)
        self._scale = gemma_layers.query_scale(weights)
        self._cap: float = weights.key("attn_logit_softcapping", 0.0)
        self._norm_offset: float = weights.key(gemma_layers.NORM_OFFSET, 0.0)

    def embedded(self, embeddings: Node) -> Node:
        return op.multiply(embeddings, op.constant(np.float32(self.width**0.5)))

    def gain(self, name: str, size: int) -> Floats:
        return super().gain(name, size) + np.float32(self._norm_offset)

    def activated(self, x: Node) -> Node:
        return op.gelu(x, "tanh")

    def attend(self, query: Node, key: Node, value: Node, mask: Node) -> Node:
        scale = op.constant(np.float32(self._scale))
        if not self._cap:
            return op.scaled_dot_product_attention(query, key, value, mask, scale)
        # OpenVINO has no attention with a cap in one node.
        products = op.matmul(op.multiply(query, scale), key, False, True)
        weights = op.softmax(op.add(capped(products, self._cap), mask), -1)
        return op.matmul(weights, value, False, False)


class Gemma2(Gemma):
    """Gemma 2: norms after attention and MLP, too, local layers, and caps of attention scores and logits."""

    tensors = (*Gemma.tensors, "post_attention_norm.weight", "post_ffw_norm.weight")


class Gemma3(Gemma2):
    """Gemma 3: no caps, norms of query and key heads, and other rotary positions in local layers."""

    tensors = (*Gemma2.tensors, *_OF_HEADS)
