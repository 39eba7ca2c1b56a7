"""Qwen2 and Qwen3. They compute the same as Qwen2Model and Qwen3Model of transformers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.architecture import Part, Parts, Unsupported
from rerankd.backends.torch.attention import Attention
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.layers import Named, Rotation, linear, rms_norm, rotated
from rerankd.domain import Pooling
from rerankd.formats.module_head import Step
from rerankd.formats.weights import Weights


class Qwen:
    """Qwen: causal attention with grouped heads, rotary positions, RMS norms and SwiGLU. Qwen2 has biases of
    query, key and value; Qwen3 has norms of each query and key instead."""

    shares_prefix = True
    head_epsilon = 0.0
    head_pooling: Pooling = "last"
    head_steps: tuple[Step, ...] = ()

    def __init__(self, weights: Weights) -> None:
        width: int = weights.key("embedding_length")
        hidden: int = weights.key("feed_forward_length")
        self.state_width = width
        self.heads: int = weights.key("attention.head_count")
        self.key_heads: int = weights.key("attention.head_count_kv")
        self.epsilon: float = weights.key("attention.layer_norm_rms_epsilon")
        if (scaling := weights.key("rope.scaling.type", "none")) != "none":
            raise Unsupported(f"its rotary positions are scaled ({scaling})")
        self.has_norms = weights.architecture == "qwen3"
        base: float = weights.key("rope.freq_base")
        self.attentions = (Attention(causal=True, rotary_base=base),) * weights.key("block_count")
        each: int = weights.key("attention.key_length", width // self.heads)
        self.head_width = each
        sizes = {"q": self.heads * each, "k": self.key_heads * each, "v": self.key_heads * each}
        self.tensors: Parts = {
            "tokens": (Part("token_embd", (weights.rows("token_embd.weight"), width), is_table=True),),
            "last_norm": (Part("output_norm", (width,)),),
        }
        self.layer_tensors: Parts = {
            "attn_norm": (Part("attn_norm", (width,)),),
            "qkv": tuple(
                Part(f"attn_{one}", (rows, width), needs_bias=not self.has_norms)
                for one, rows in sizes.items()
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

    def embed(self, batch: PackedBatch, weights: Named) -> Tensor:
        return F.embedding(batch.token_ids, weights["tokens.weight"])

    def project(self, x: Tensor, weights: Named, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        assert rotation is not None
        heads = (self.heads, self.key_heads, self.key_heads)
        qkv = linear(rms_norm(x, weights, "attn_norm", self.epsilon), weights, "qkv")
        q, k, v = qkv.unflatten(-1, (sum(heads), self.head_width)).split(heads, 1)
        if self.has_norms:
            q, k = (
                rms_norm(one, weights, name, self.epsilon) for one, name in ((q, "q_norm"), (k, "k_norm"))
            )
        return rotated(q, rotation), rotated(k, rotation), v

    def finish(self, x: Tensor, mixed: Tensor, weights: Named) -> Tensor:
        x = x + linear(mixed, weights, "out")
        normed = rms_norm(x, weights, "mlp_norm", self.epsilon)
        gate, up = linear(normed, weights, "gate_up").chunk(2, -1)
        return x + linear(F.silu(gate) * up, weights, "down")

    def final(self, rows: Tensor, weights: Named) -> Tensor:
        return rms_norm(rows, weights, "last_norm", self.epsilon)
