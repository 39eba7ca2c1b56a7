"""Qwen2 and Qwen3. They compute the same as Qwen2Model and Qwen3Model of transformers."""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.architecture import Part, Parts, Unsupported
from rerankd.backends.torch.attention import Attention
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.layers import Named, Rotary, Rotation, linear, rms_norm, rotated
from rerankd.domain import Pooling
from rerankd.formats import local_layers
from rerankd.formats.module_head import Step
from rerankd.formats.weights import Weights

BOTH_WAYS = ("llama-embed",)
"""Architectures whose GGUF files do not declare that attention is not causal."""


class Qwen:
    """Qwen: causal attention with grouped heads, rotary positions, RMS norms and SwiGLU. Qwen2 has biases of
    query, key and value; Qwen3 has norms of each query and key instead. Other decoders are kinds of it."""

    head_epsilon = 0.0
    head_pooling: Pooling = "last"
    head_steps: tuple[Step, ...] = (("dense", "cls.output", ""),)

    def __init__(self, weights: Weights) -> None:
        width: int = weights.key("embedding_length")
        hidden: int = weights.key("feed_forward_length")
        self.state_width = width
        self.heads: int = weights.key("attention.head_count")
        self.key_heads: int = weights.key("attention.head_count_kv", self.heads)
        self.epsilon: float = weights.key("attention.layer_norm_rms_epsilon")
        each: int = weights.key("attention.key_length", width // self.heads)
        self.head_width = each
        self.shares_prefix: bool = weights.key("attention.causal", weights.architecture not in BOTH_WAYS)
        self.attentions = self.read_attentions(weights)
        self.has_norms = weights.architecture in ("qwen3", "qwen3vl", "gemma3")
        has_biases = weights.architecture == "qwen2"
        sizes = {"q": self.heads * each, "k": self.key_heads * each, "v": self.key_heads * each}
        self.tensors: Parts = {
            "tokens": (Part("token_embd", (weights.rows("token_embd.weight"), width), is_table=True),),
            "last_norm": (Part("output_norm", (width,)),),
        }
        self.layer_tensors: Parts = {
            "attn_norm": (Part("attn_norm", (width,)),),
            "qkv": tuple(
                Part(f"attn_{one}", (rows, width), needs_bias=has_biases) for one, rows in sizes.items()
            ),
            "out": (Part("attn_output", (width, self.heads * each)),),
            "mlp_norm": (Part("ffn_norm", (width,)),),
            "gate_up": (Part("ffn_gate", (hidden, width)), Part("ffn_up", (hidden, width))),
            "down": (Part("ffn_down", (width, hidden)),),
        }
        if self.has_norms:
            self.layer_tensors |= {
                "q_norm": (Part("attn_q_norm", (each,)),),
                "k_norm": (Part("attn_k_norm", (each,)),),
            }

    def read_attentions(self, weights: Weights) -> tuple[Attention, ...]:
        """The attention of each layer."""
        if (scaling := weights.key("rope.scaling.type", "none")) != "none":
            raise Unsupported(f"its rotary positions are scaled ({scaling})")
        wide = Attention(causal=self.shares_prefix, rotary=Rotary(weights.key("rope.freq_base")))
        return tuple(replace(wide, window=window) for window in local_layers.windows(weights))

    def embed(self, batch: PackedBatch, weights: Named) -> Tensor:
        return F.embedding(batch.token_ids, weights["tokens.weight"])

    def project(self, x: Tensor, weights: Named, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        assert rotation is not None
        heads = (self.heads, self.key_heads, self.key_heads)
        qkv = linear(self.norm(x, weights, "attn_norm"), weights, "qkv")
        q, k, v = qkv.unflatten(-1, (sum(heads), self.head_width)).split(heads, 1)
        if self.has_norms:
            q, k = self.norm(q, weights, "q_norm"), self.norm(k, weights, "k_norm")
        return rotated(q, rotation), rotated(k, rotation), v

    def finish(self, x: Tensor, mixed: Tensor, weights: Named) -> Tensor:
        x = x + linear(mixed, weights, "out")
        normed = self.norm(x, weights, "mlp_norm")
        gate, up = linear(normed, weights, "gate_up").chunk(2, -1)
        return x + linear(F.silu(gate) * up, weights, "down")

    def final(self, rows: Tensor, weights: Named) -> Tensor:
        return self.norm(rows, weights, "last_norm")

    def norm(self, x: Tensor, weights: Named, name: str) -> Tensor:
        return rms_norm(x, weights, name, self.epsilon)
