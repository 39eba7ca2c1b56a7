"""Gemma 1, 2 and 3 (texts). They compute the same as GemmaModel, Gemma2Model and Gemma3TextModel of
transformers."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.architecture import Part, Parts, Unsupported
from rerankd.backends.torch.architectures.qwen import Qwen
from rerankd.backends.torch.attention import Attention
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.layers import Named, Rotary, linear
from rerankd.formats.weights import Weights

# Each n-th layer is global, the others are local, unless the file has the pattern.
_PATTERNS = {"gemma": 1, "gemma2": 2, "gemma3": 6}
# The layers of the 27 B models. They scale queries by the width of the states per head, not by a head's.
_LARGEST = {"gemma2": 46, "gemma3": 62}


class Gemma(Qwen):
    """Gemma: scaled embeddings, GeGLU in its tanh form, and norms that multiply in float32. Gemma 2 and 3
    have norms after attention and MLP, too, and local layers. Gemma 2 caps attention scores and logits;
    Gemma 3 has norms of queries and keys, and other rotary positions in local layers."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        width = self.state_width
        # Added to the weights of norms; GGUF's converter has done so already.
        self.norm_offset: float = weights.key("attention.norm_offset", 0.0)
        self.has_norms_after = weights.architecture != "gemma"
        layer_tensors = dict(self.layer_tensors)
        if self.has_norms_after:
            layer_tensors["after_attn_norm"] = (Part("post_attention_norm", (width,)),)
            layer_tensors["after_mlp_norm"] = (Part("post_ffw_norm", (width,)),)
        self.tensors, self.layer_tensors = _wide(self.tensors), _wide(layer_tensors)

    def read_attentions(self, weights: Weights) -> tuple[Attention, ...]:
        kind, count = weights.architecture, weights.key("block_count")
        if (scaling := weights.key("rope.scaling.type", "none")) not in ("none", "linear"):
            raise Unsupported(f"its rotary positions are scaled ({scaling})")
        base: float = weights.key("rope.freq_base", 10_000.0)
        of_local: float = weights.key("rope.freq_base_swa", 10_000.0) if kind == "gemma3" else base
        is_largest = count == _LARGEST.get(kind)
        per_head = self.state_width // self.heads if is_largest else self.head_width
        wide = Attention(
            causal=self.shares_prefix,
            rotary=Rotary(base, float(weights.key("rope.scaling.factor", 1.0))),
            scale=weights.key("attention.scale", per_head**-0.5),
            cap=weights.key("attn_logit_softcapping", 0.0),
        )
        # The file has the tokens that a token reads, itself included.
        window = weights.key("attention.sliding_window", 1) - 1
        local = replace(wide, window=window, rotary=Rotary(of_local))
        pattern = weights.key("attention.sliding_window_pattern", _PATTERNS[kind])
        is_local = pattern if isinstance(pattern, tuple) else [(at + 1) % pattern for at in range(count)]
        return tuple(local if one else wide for one in is_local[:count])

    def embed(self, batch: PackedBatch, weights: Named) -> Tensor:
        x = super().embed(batch, weights)
        return x * torch.tensor(self.state_width**0.5, dtype=x.dtype)

    def finish(self, x: Tensor, mixed: Tensor, weights: Named) -> Tensor:
        x = x + self._after(linear(mixed, weights, "out"), weights, "after_attn_norm")
        gate, up = linear(self.norm(x, weights, "mlp_norm"), weights, "gate_up").chunk(2, -1)
        inner = linear(F.gelu(gate, approximate="tanh") * up, weights, "down")
        return x + self._after(inner, weights, "after_mlp_norm")

    def _after(self, x: Tensor, weights: Named, name: str) -> Tensor:
        return self.norm(x, weights, name) if self.has_norms_after else x

    def norm(self, x: Tensor, weights: Named, name: str) -> Tensor:
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        return (scaled * (weights[f"{name}.weight"] + self.norm_offset)).to(x.dtype)


def _wide(parts: Parts) -> Parts:
    """The same parts, of which the norms stay in float32."""
    return {
        name: tuple(replace(one, is_wide=name.endswith("norm")) for one in of) for name, of in parts.items()
    }
