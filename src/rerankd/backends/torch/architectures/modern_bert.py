"""The ModernBERT architecture. It computes the same as ModernBertModel of transformers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.architecture import Part, Parts
from rerankd.backends.torch.attention import KeysValues, attend
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.layers import Named, layer_norm, linear, rotated, rotation
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
        self.epsilon: float = weights.key("attention.layer_norm_epsilon")
        self.head_epsilon = self.epsilon
        # Tokens on each side that a local layer reads.
        self.window = int(weights.key("attention.sliding_window")) // 2
        self.bases = {
            "global": float(weights.key("rope.freq_base")),
            "local": float(weights.key("rope.freq_base_swa", 10000.0)),
        }
        self.kinds = _kinds(weights)
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

    def layer(
        self, x: Tensor, weights: Named, batch: PackedBatch, kind: str, prefix: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        # The first layer has no attention norm: the embeddings are already normalised.
        is_normed = "attn_norm.weight" in weights
        normed = layer_norm(x, weights, "attn_norm", self.epsilon) if is_normed else x
        q, k, v = linear(normed, weights, "qkv").unflatten(-1, (3, self.heads, -1)).unbind(1)
        turned = batch.once(("rotation", kind), lambda: self._rotation(batch, kind, q))
        q, k = rotated(q, turned), rotated(k, turned)
        mixed = attend(q, k, v, batch, window=self.window if kind == "local" else None)
        x = x + linear(mixed, weights, "out")
        inner, gate = linear(layer_norm(x, weights, "mlp_norm", self.epsilon), weights, "up").chunk(2, -1)
        return x + linear(F.gelu(inner) * gate, weights, "down"), (k, v)

    def final(self, rows: Tensor, weights: Named) -> Tensor:
        return layer_norm(rows, weights, "last_norm", self.epsilon)

    def _rotation(self, batch: PackedBatch, kind: str, like: Tensor) -> tuple[Tensor, Tensor]:
        return rotation(batch.positions, like.shape[-1], self.bases[kind], like.dtype)


def _kinds(weights: Weights) -> tuple[str, ...]:
    """Which layers are local: the file has one flag per layer, or says that each n-th layer is global."""
    count: int = weights.key("block_count")
    pattern = weights.key("attention.sliding_window_pattern", 3)
    local = pattern if isinstance(pattern, tuple) else [at % pattern != 0 for at in range(count)]
    return tuple("local" if one else "global" for one in local[:count])


def _head(weights: Weights) -> tuple[Step, ...]:
    steps: list[Step] = []
    if weights.has("cls.weight"):
        steps.append(("dense", "cls", "gelu"))
    if weights.has("cls.norm.weight"):
        steps.append(("norm", "cls.norm", ""))
    return (*steps, ("dense", "cls.output", ""))
