"""Attention over packed sequences: the only module that knows attention kernels.

On CUDA cards from compute capability 8.0 on, in half precision, torch.nn.attention.varlen reads packed
sequences as they are. Everywhere else, queries, keys and values are padded for scaled_dot_product_attention
alone; all other layers compute no padding.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.layers import Rotary
from rerankd.backends.torch.packing import Tokens, pack

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [tokens, key heads, n]."""


@dataclass(frozen=True, slots=True)
class Attention:
    """What the attention of one layer reads, and how.

    `causal`: no later tokens. `window`: tokens up to this far away; None for all. `rotary`: its rotary
    positions, None if it has none. `scale` multiplies the products of queries and keys, 1 / √n if it is None.
    `cap`: a score s becomes cap · tanh(s / cap).
    `bias` returns what is added to the scores, [N, heads, queries, keys], for padded queries and keys [N,
    heads, tokens, n]. No kernel for packed sequences computes a cap or a bias.
    """

    causal: bool = False
    window: int | None = None
    rotary: Rotary | None = None
    scale: float | None = None
    cap: float = 0.0
    bias: Callable[[Tensor, Tensor, PackedBatch], Tensor] | None = None


def attend(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, attention: Attention) -> Tensor:
    """Scaled dot-product attention of query [T, heads, n] with key and value [keys, key heads, n].

    Returns [T, heads · n]. Several heads may share one key head. The keys are those of the batch's
    `key_offsets`: see `with_prefixes`.
    """
    is_plain = not attention.cap and attention.bias is None and batch.attended is None
    compute = _varlen if batch.uses_varlen and is_plain else _padded
    return compute(query, key, value, batch, attention).flatten(1)


def with_prefixes(own: Tensor, prefixes: Tensor, key_index: Tensor) -> Tensor:
    """The keys (or values) that each sequence reads: those of its prefix, then its own [T, key heads, n].
    `prefixes` has those of the pass's prefixes, one after the other; `key_index`: see PackedArrays."""
    return torch.cat((prefixes, own))[key_index]


def _padded(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, attention: Attention) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (one.repeat_interleave(shared, 1) for one in (key, value))
    query, key, value = (
        batch.query_grid.padded(query),
        batch.key_grid.padded(key),
        batch.key_grid.padded(value),
    )
    mask = batch.mask(causal=attention.causal, window=attention.window)
    if attention.bias is not None:
        bias = attention.bias(query, key, batch)
        mask = bias if mask is None else bias.masked_fill(~mask, -torch.inf)
    if attention.cap:
        mixed = _capped(query, key, value, mask, attention)
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=attention.scale)
    return batch.query_grid.packed(mixed)


def _capped(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, attention: Attention) -> Tensor:
    scale = query.shape[-1] ** -0.5 if attention.scale is None else attention.scale
    scores = attention.cap * torch.tanh(query @ key.transpose(-1, -2) * (scale / attention.cap))
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1, dtype=torch.float32).to(value.dtype) @ value


def _varlen(query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, attention: Attention) -> Tensor:
    side = -1 if attention.window is None else attention.window
    found = _kernel()(
        query,
        key,
        value,
        batch.offsets,
        batch.key_offsets,
        batch.longest,
        batch.longest_key,
        scale=attention.scale,
        window_size=(side, 0 if attention.causal else side),
    )
    assert isinstance(found, Tensor)
    return found


@lru_cache(1)
def _kernel() -> Callable[..., Any]:
    """PyTorch's packed attention for CUDA, with shared key heads. Raises ImportError before PyTorch 2.10."""
    from torch.nn.attention.varlen import varlen_attn

    # 2.11 shares key heads without being asked to; later versions have a parameter for it.
    has_parameter = "enable_gqa" in inspect.signature(varlen_attn).parameters
    return partial(varlen_attn, enable_gqa=True) if has_parameter else varlen_attn


def varlen_problem(device: torch.device, dtype: torch.dtype) -> str:
    """Why packed attention can't be used on a device, as a clause; "" if it works and is right.

    Compares it with padded attention for two causal sequences with grouped heads, once with a prefix.
    """
    sequences = [Tokens(np.zeros(20, np.int32), 20, 0), Tokens(np.zeros(30, np.int32), 30)]
    arrays = pack(sequences, (16,), "last")
    made = torch.Generator().manual_seed(0)
    q, k, v, pk, pv = (
        torch.randn(tokens, heads, 64, generator=made).to(device, dtype)
        for tokens, heads in ((50, 4), (50, 2), (50, 2), (16, 2), (16, 2))
    )
    try:
        packed, padded = (
            _with_prefix(q, (k, v), (pk, pv), PackedBatch(arrays, device, uses_varlen=one))
            for one in (True, False)
        )
        difference = float((packed - padded).norm() / padded.norm())
    except (ImportError, RuntimeError, TypeError, ValueError) as error:  # a missing kernel, another signature
        return f"packed attention does not work: {error!s:.120}".partition("\n")[0]
    return "" if difference < 0.02 else f"packed attention differs by {difference:.2g}"


def _with_prefix(query: Tensor, own: KeysValues, prefix: KeysValues, batch: PackedBatch) -> Tensor:
    assert batch.key_index is not None
    key, value = (with_prefixes(*pair, batch.key_index) for pair in zip(own, prefix, strict=True))
    return attend(query, key, value, batch, Attention(causal=True)).float()
