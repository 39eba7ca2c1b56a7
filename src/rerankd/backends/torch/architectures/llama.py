"""Llama, also as a bidirectional model (llama-nemotron-rerank). It computes the same as LlamaModel of
transformers."""

from __future__ import annotations

from rerankd.backends.torch.architectures.qwen import Qwen
from rerankd.backends.torch.attention import Attention
from rerankd.backends.torch.layers import Rotary
from rerankd.domain import Pooling
from rerankd.formats import llama_rope
from rerankd.formats.weights import Weights


class Llama(Qwen):
    """Llama: Qwen2 without biases, and with scaled rotary positions from Llama 3.1 on."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        if not self.shares_prefix:
            self.head_pooling: Pooling = "mean"

    def read_attentions(self, weights: Weights) -> tuple[Attention, ...]:
        divisors = tuple(llama_rope.divisors(weights, self.head_width).tolist())
        rotary = Rotary(weights.key("rope.freq_base"), divisors=divisors)
        return (Attention(causal=self.shares_prefix, rotary=rotary),) * int(weights.key("block_count"))
