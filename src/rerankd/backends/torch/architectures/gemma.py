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
from rerankd.formats import gemma_layers
from rerankd.formats.weights import Weights


class Gemma(Qwen):
    """Gemma: scaled embeddings, GeGLU in its tanh form, and norms that multiply in float32. Gemma 2 and 3
    have norms after attention and MLP, too, and local layers. Gemma 2 caps attention scores and logits;
    Gemma 3 has norms of queries and keys, and other rotary positions in local layers."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights)
        width = self.state_width
        self.norm_offset: float = weights.key(gemma_layers.NORM_OFFSET, 0.0)
        self.has_norms_after = weights.architecture != "gemma"
        layer_tensors = dict(self.layer_tensors)
        if self.has_norms_after:
            layer_tensors["after_attn_norm"] = (Part("post_attention_norm", (width,)),)
            layer_tensors["after_mlp_norm"] = (Part("post_ffw_norm", (width,)),)
        self.tensors, self.layer_tensors = _wide(self.tensors), _wide(layer_tensors)

    def read_attentions(self, weights: Weights) -> tuple[Attention, ...]:
        if (scaling := weights.key("rope.scaling.type", "none")) not in ("none", "linear"):
            raise Unsupported(f"its rotary positions are scaled ({scaling})")
        wide = Attention(
            causal=self.shares_prefix,
            scale=gemma_layers.query_scale(weights),
            cap=weights.key("attn_logit_softcapping", 0.0),
        )
        return tuple(
            replace(wide, window=one.window, rotary=Rotary(one.rope_base, one.rope_factor))
            for one in gemma_layers.read(weights)
        )

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
