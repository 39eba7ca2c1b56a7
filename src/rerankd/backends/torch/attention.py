"""Attention over packed sequences: the only module that knows attention kernels.

On CUDA cards from compute capability 8.0 on, in half precision, torch.nn.attention.varlen reads packed
sequences as they are. Everywhere else, queries, keys and values are padded for scaled_dot_product_attention
alone; all other layers compute no padding.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rerankd.backends.torch.batch import PackedBatch
from rerankd.backends.torch.packing import Tokens, pack

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, each [tokens, key heads, n]."""


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    batch: PackedBatch,
    *,
    causal: bool = False,
    window: int | None = None,
    prefix: KeysValues | None = None,
) -> Tensor:
    """Scaled dot-product attention of query [T, heads, n] with key and value [T, key heads, n].

    Returns [T, heads · n]. Several heads may share one key head. `causal` and `window`: see PackedBatch.mask.
    `prefix` has the keys and values of the pass's prefixes, one after the other.
    """
    if prefix is not None and batch.key_index is not None:
        key = torch.cat((prefix[0], key))[batch.key_index]
        value = torch.cat((prefix[1], value))[batch.key_index]
    compute = _varlen if batch.uses_varlen else _padded
    return compute(query, key, value, batch, causal, window).flatten(1)


def _padded(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, causal: bool, window: int | None
) -> Tensor:
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key, value = (one.repeat_interleave(shared, 1) for one in (key, value))
    mixed = F.scaled_dot_product_attention(
        batch.query_grid.padded(query),
        batch.key_grid.padded(key),
        batch.key_grid.padded(value),
        attn_mask=batch.mask(causal=causal, window=window),
    )
    return batch.query_grid.packed(mixed)


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, batch: PackedBatch, causal: bool, window: int | None
) -> Tensor:
    # Not a part of torch before 2.10, and CUDA only.
    from torch.nn.attention.varlen import varlen_attn

    side = -1 if window is None else window
    found = varlen_attn(
        query,
        key,
        value,
        batch.offsets,
        batch.key_offsets,
        batch.longest,
        batch.longest_key,
        window_size=(side, 0 if causal else side),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(found, Tensor)
    return found


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
            attend(
                q, k, v, PackedBatch(arrays, device, uses_varlen=one), causal=True, prefix=(pk, pv)
            ).float()
            for one in (True, False)
        )
        difference = float((packed - padded).norm() / padded.norm())
    except (ImportError, RuntimeError, TypeError, ValueError) as error:  # a missing kernel, another signature
        return f"packed attention does not work: {error!s:.120}".partition("\n")[0]
    return "" if difference < 0.02 else f"packed attention differs by {difference:.2g}"
