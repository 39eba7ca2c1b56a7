"""The BERT architecture, also of XLM-R (XLM-RoBERTa), DistilBERT, ELECTRA and jina-reranker-v2.

It computes the same as BertModel and XLMRobertaModel of transformers.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.architecture import Part, Parts
from rerankd.backends.torch.attention import Attention
from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.layers import Named, Rotation, layer_norm, linear
from rerankd.domain import Pooling
from rerankd.formats.module_head import Step
from rerankd.formats.weights import Weights


class Bert:
    """BERT: learned positions, post-normalisation, and a rank head of dense, activation and output layer.
    That is RoBERTa's head, and equals BERT's pooler and classifier."""

    shares_prefix = False
    head_epsilon = 0.0
    head_pooling: Pooling = "cls"
    has_positions = True
    """Whether the model adds a table of positions to its embeddings."""

    def __init__(self, weights: Weights) -> None:
        width: int = weights.key("embedding_length")
        narrow: int = weights.key("token_embedding_length", width)
        hidden: int = weights.key("feed_forward_length")
        self.state_width = width
        self.heads: int = weights.key("attention.head_count")
        self.key_heads = self.heads
        self.epsilon: float = weights.key("attention.layer_norm_epsilon")
        self.head_width = width // self.heads
        self.attentions: tuple[Attention, ...] = (Attention(),) * weights.key("block_count")
        self.tensors: Parts = _tensors(weights, width, narrow, has_positions=self.has_positions)
        self.head_steps = _head(weights)
        merged = (Part("attn_qkv", (3 * width, width), needs_bias=True),)
        apart = tuple(Part(f"attn_{one}", (width, width), needs_bias=True) for one in "qkv")
        self.layer_tensors: Parts = {
            "qkv": merged if weights.has("blk.0.attn_qkv.weight") else apart,
            "out": (Part("attn_output", (width, width), needs_bias=True),),
            "attn_norm": (Part("attn_output_norm", (width,), needs_bias=True),),
            "up": (Part("ffn_up", (hidden, width), needs_bias=True),),
            "down": (Part("ffn_down", (width, hidden), needs_bias=True),),
            "norm": (Part("layer_output_norm", (width,), needs_bias=True),),
        }

    def embed(self, batch: PackedBatch, weights: Named) -> Tensor:
        x = F.embedding(batch.token_ids, weights["tokens.weight"])
        if self.has_positions:
            x = x + F.embedding(batch.positions, weights["positions.weight"])
        if (types := weights.get("types.weight")) is not None:
            x = x + F.embedding(batch.types.clamp(max=len(types) - 1), types)
        x = layer_norm(x, weights, "norm", self.epsilon)
        return linear(x, weights, "project") if "project.weight" in weights else x

    def project(self, x: Tensor, weights: Named, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = linear(x, weights, "qkv").unflatten(-1, (3, self.heads, self.head_width)).unbind(1)
        return q, k, v

    def finish(self, x: Tensor, mixed: Tensor, weights: Named) -> Tensor:
        x = layer_norm(x + linear(mixed, weights, "out"), weights, "attn_norm", self.epsilon)
        inner = self.inner(linear(x, weights, "up"))
        return layer_norm(x + linear(inner, weights, "down"), weights, "norm", self.epsilon)

    def inner(self, up: Tensor) -> Tensor:
        """The inner states of the MLP from the product with its first matrix."""
        return F.gelu(up)

    def final(self, rows: Tensor, weights: Named) -> Tensor:
        return rows


def _tensors(weights: Weights, width: int, narrow: int, *, has_positions: bool) -> Parts:
    """The embeddings. ELECTRA's small models have narrow ones and project them."""
    found: dict[str, tuple[Part, ...]] = {
        "tokens": (Part("token_embd", (weights.rows("token_embd.weight"), narrow), is_table=True),),
        "norm": (Part("token_embd_norm", (narrow,), needs_bias=True),),
    }
    if has_positions:
        positions = weights.key("context_length")
        found["positions"] = (Part("position_embd", (positions, narrow), is_table=True),)
    if narrow != width:
        found["project"] = (Part("token_embd_project", (width, narrow), needs_bias=True),)
    # DistilBERT, which GGUF files name BERT too and whose vocabulary is WordPiece, has no token types.
    needs_types = weights.values.get("tokenizer.ggml.model", "bert") != "bert"
    if needs_types or weights.has("token_types.weight"):
        found["types"] = (Part("token_types", (weights.rows("token_types.weight"), narrow), is_table=True),)
    return found


def _head(weights: Weights) -> tuple[Step, ...]:
    last: Step = ("dense", "cls.output", "")
    if not weights.has("cls.weight"):
        return (last,)
    return ("dense", "cls", weights.key("classifier.activation", "tanh")), last
