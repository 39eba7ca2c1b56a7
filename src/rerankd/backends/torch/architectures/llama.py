"""Llama, also as a bidirectional model (llama-nemotron-rerank). It computes the same as LlamaModel of
transformers."""

from __future__ import annotations

from rerankd.backends.torch.architecture import Unsupported
from rerankd.backends.torch.architectures.qwen import Qwen
from rerankd.backends.torch.attention import Attention
from rerankd.backends.torch.layers import Bands, Rotary
from rerankd.formats.weights import Weights


class Llama(Qwen):
    """Llama: Qwen2 without biases, and with scaled rotary positions from Llama 3.1 on."""

    def read_attentions(self, weights: Weights) -> tuple[Attention, ...]:
        scaling, count = weights.key("rope.scaling.type", "none"), int(weights.key("block_count"))
        rotary = Rotary(weights.key("rope.freq_base"))
        if scaling == "llama3":
            names = ("low_freq_factor", "high_freq_factor", "original_context_length")
            bands = Bands(*(weights.key(f"rope.scaling.{name}") for name in names))
            rotary = rotary._replace(factor=weights.key("rope.scaling.factor"), bands=bands)
        elif scaling != "none":
            raise Unsupported(f"its rotary positions are scaled ({scaling})")
        return (Attention(causal=self.shares_prefix, rotary=rotary),) * count
