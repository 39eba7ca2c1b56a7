"""What the tiny model answers, computed in float32 from its weights, without llama.cpp.

Architecture llama as in its paper (Touvron et al. 2023, arXiv 2302.13971): RMSNorm, rotary positions on pairs
of neighbours, grouped heads, SwiGLU.
"""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np

from rerankd.backends.llama.build import tiny


def answers() -> list[float]:
    weights: dict[str, Any] = {
        name.removesuffix(".weight"): gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[kind])
        for name, kind, rows in tiny.tensors()
    }
    return [_answer(weights, prompt) for prompt in tiny.PROMPTS]


def _answer(weights: dict[str, Any], prompt: list[int]) -> float:
    x = weights["token_embd"][prompt]
    count, head_width = len(prompt), tiny.WIDTH // tiny.HEADS
    causal = np.triu(np.full((count, count), -np.inf), 1)
    for layer in range(tiny.LAYERS):
        blk = f"blk.{layer}."
        h = _norm(x)
        q = _rotate((h @ weights[blk + "attn_q"].T).reshape(count, tiny.HEADS, head_width))
        k = _rotate((h @ weights[blk + "attn_k"].T).reshape(count, tiny.KV_HEADS, head_width))
        v = (h @ weights[blk + "attn_v"].T).reshape(count, tiny.KV_HEADS, head_width)
        k, v = (np.repeat(part, tiny.HEADS // tiny.KV_HEADS, axis=1) for part in (k, v))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(head_width) + causal
        mixed = np.einsum("hqk,khd->qhd", _softmax(scores), v).reshape(count, -1)
        x = x + mixed @ weights[blk + "attn_output"].T
        h = _norm(x)
        gate = h @ weights[blk + "ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ weights[blk + "ffn_up"].T)) @ weights[blk + "ffn_down"].T
    logits = _norm(x[-1]) @ weights["output"].T
    return float(logits[tiny.LABELS[0]] - logits[tiny.LABELS[1]])


def _norm(x: Any) -> Any:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + tiny.EPSILON)


def _softmax(x: Any) -> Any:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def _rotate(x: Any) -> Any:
    width = x.shape[-1]
    turns = tiny.ROPE_BASE ** (-np.arange(0, width, 2) / width)
    angle = np.arange(len(x))[:, None, None] * turns
    first, second = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = first * np.cos(angle) - second * np.sin(angle)
    out[..., 1::2] = first * np.sin(angle) + second * np.cos(angle)
    return out
