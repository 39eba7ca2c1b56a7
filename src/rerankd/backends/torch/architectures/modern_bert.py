"""The ModernBERT architecture. It computes the same as ModernBertModel of transformers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.architecture import Part, Parts
from rerankd.backends.torch.attention import Attention
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.layers import ACTIVATIONS, Named, Rotary, Rotation, layer_norm, linear, rotated
from rerankd.domain import Pooling
from rerankd.formats.module_head import Step
from rerankd.formats.weights import Weights


class ModernBert:
    """ModernBERT: pre-normalisation, rotary positions, GeGLU, and local attention in most layers."""

    shares_prefix = False
    head_pooling: Pooling = "mean"

    def __init__(self, weights: Weights) -> None:
        width: int = weights.key("embedding_length")
        hidden: int = weights.key("feed_forward_length")
        self.state_width = width
        self.heads: int = weights.key("attention.head_count")
        self.key_heads = self.heads
        self.epsilon: float = weights.key("attention.layer_norm_epsilon")
        self.head_epsilon = self.epsilon
        self.head_width = width // self.heads
        self.activation = ACTIVATIONS[weights.key("hidden_activation", "gelu")]
        self.attentions = _attentions(weights)
        rows = weights.rows("token_embd.weight")
        self.tensors: Parts = {
            "tokens": (Part("token_embd", (rows, width), is_table=True),),
            "norm": (Part("token_embd_norm", (width,)),),
            "last_norm": (Part("output_norm", (width,)),),
        }
        self.layer_tensors: Parts = {
            "attn_norm": (Part("attn_norm", (width,), not_in_first=True),),
            "qkv": (Part("attn_qkv", (3 * width, width)),),
            "out": (Part("attn_output", (width, width)),),
            "mlp_norm": (Part("ffn_norm", (width,)),),
            "up": (Part("ffn_up", (2 * hidden, width)),),
            "down": (Part("ffn_down", (width, hidden)),),
        }
        self.head_steps = _head(weights)

    def embed(self, batch: PackedBatch, weights: Named) -> Tensor:
        return layer_norm(
            F.embedding(batch.token_ids, weights["tokens.weight"]), weights, "norm", self.epsilon
        )

    def project(self, x: Tensor, weights: Named, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        assert rotation is not None
        # The first layer has no attention norm: the embeddings are already normalised.
        is_normed = "attn_norm.weight" in weights
        normed = layer_norm(x, weights, "attn_norm", self.epsilon) if is_normed else x
        q, k, v = linear(normed, weights, "qkv").unflatten(-1, (3, self.heads, self.head_width)).unbind(1)
        return rotated(q, rotation), rotated(k, rotation), v

    def finish(self, x: Tensor, mixed: Tensor, weights: Named) -> Tensor:
        x = x + linear(mixed, weights, "out")
        inner, gate = linear(layer_norm(x, weights, "mlp_norm", self.epsilon), weights, "up").chunk(2, -1)
        return x + linear(self.activation(inner) * gate, weights, "down")

    def final(self, rows: Tensor, weights: Named) -> Tensor:
        return layer_norm(rows, weights, "last_norm", self.epsilon)


def _attentions(weights: Weights) -> tuple[Attention, ...]:
    """Which layers are local: the file has one flag per layer, or says that each n-th layer is global."""
    count: int = weights.key("block_count")
    pattern = weights.key("attention.sliding_window_pattern", 3)
    is_local = pattern if isinstance(pattern, tuple) else [at % pattern != 0 for at in range(count)]
    # The file has the tokens of the whole window, the token itself in the middle.
    window = int(weights.key("attention.sliding_window")) // 2
    wide = Attention(rotary=Rotary(float(weights.key("rope.freq_base"))))
    local = Attention(window=window, rotary=Rotary(float(weights.key("rope.freq_base_swa", 10000.0))))
    return tuple(local if one else wide for one in is_local[:count])


def _head(weights: Weights) -> tuple[Step, ...]:
    steps: list[Step] = []
    if weights.has("cls.weight"):
        steps.append(("dense", "cls", "gelu"))
    if weights.has("cls.norm.weight"):
        steps.append(("norm", "cls.norm", ""))
    return (*steps, ("dense", "cls.output", ""))
