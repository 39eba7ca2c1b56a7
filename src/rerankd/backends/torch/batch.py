"""The arrays of a forward pass on a device, and how its sequences are laid out for padded attention."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rerankd.backends.torch.packing import Int32, PackedArrays

T = TypeVar("T")


class PackedBatch:
    """PackedArrays as int32 tensors on `device`; see there for the names. `uses_varlen` selects the attention
    kernel (see attention.py). `rows` is None if the head reads all tokens."""

    def __init__(self, arrays: PackedArrays, device: torch.device, *, uses_varlen: bool = False) -> None:
        self.device = device
        self.uses_varlen = uses_varlen
        self.longest, self.longest_key = arrays.longest, arrays.longest_key
        self._host_offsets, self._host_key_offsets = arrays.offsets, arrays.key_offsets
        (
            self.token_ids,
            self.positions,
            self.types,
            self.offsets,
            self.key_offsets,
            self.row_counts,
            self.rows,
            self.key_index,
            self.attended,
        ) = _moved(
            (
                arrays.token_ids,
                arrays.positions,
                arrays.types,
                arrays.offsets,
                arrays.key_offsets,
                arrays.row_counts,
                arrays.rows,
                arrays.key_index,
                arrays.attended,
            ),
            device,
        )
        self._made: dict[Hashable, Any] = {}

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of `make`, which is computed once per pass and kept under `key` for all its layers."""
        if key not in self._made:
            self._made[key] = make()
        found: T = self._made[key]
        return found

    @cached_property
    def query_grid(self) -> Grid:
        """The layout of queries for padded attention."""
        return Grid(self._host_offsets, self.device)

    @cached_property
    def key_grid(self) -> Grid:
        """The layout of keys and values for padded attention."""
        return self.query_grid if self.key_index is None else Grid(self._host_key_offsets, self.device)

    def mask(self, *, causal: bool, window: int | None) -> Tensor | None:
        """Which keys each query reads: bool [N, 1, queries, keys] of the padded layout. None: all of them.

        A query is aligned with the key of its own token. `causal`: it reads no later keys. `window`: it reads
        keys up to this many tokens away.
        """
        return self.once(("mask", causal, window), lambda: self._mask(causal, window))

    def _mask(self, causal: bool, window: int | None) -> Tensor | None:
        queries, keys = self.query_grid, self.key_grid
        is_whole = keys.is_full and self.attended is None
        if is_whole and not causal and (window is None or keys.longest <= window):
            return None
        before = (keys.lengths - queries.lengths)[:, None, None]
        distance = keys.columns[None, None, :] - before - queries.columns[None, :, None]
        lengths = keys.lengths if self.attended is None else self.attended
        seen = (keys.columns < lengths[:, None])[:, None, :].expand_as(distance)
        if causal:
            seen = seen & (distance <= 0)
        if window is not None:
            seen = seen & (distance.abs() <= window)
        # A row of padding reads its first key: a row without any would compute 0 / 0.
        padding = (queries.columns >= queries.lengths[:, None])[:, :, None]
        return (seen | (padding & (keys.columns == 0))).unsqueeze(1)


def _moved(arrays: Sequence[Int32 | None], device: torch.device) -> list[Any]:
    """The arrays on the device, by one copy of all of them, for which the caller does not wait."""
    there = [one for one in arrays if one is not None]
    whole = torch.from_numpy(np.concatenate(there))
    if device.type == "cuda":
        whole = whole.pin_memory()  # a copy from other memory would wait for the passes before
    parts = iter(whole.to(device, non_blocking=True).split([len(one) for one in there]))
    return [None if one is None else next(parts) for one in arrays]


class Grid:
    """Packed rows as a padded grid [N, longest]. `places` [T]: where each packed row is in the flattened
    grid. `is_full`: no sequence needs padding."""

    def __init__(self, offsets: Int32, device: torch.device) -> None:
        # Computed on the host: reading a size from the device would wait for the passes before.
        lengths = np.diff(offsets)
        self.count = len(lengths)
        self.longest = int(lengths.max())
        self.is_full = bool((lengths == self.longest).all())
        starts = np.arange(self.count, dtype=np.int32) * self.longest - offsets[:-1]
        places = np.arange(offsets[-1], dtype=np.int32) + np.repeat(starts, lengths)
        self.lengths, self.places = _moved((lengths, places), device)
        self.columns = torch.arange(self.longest, device=device)

    def padded(self, rows: Tensor) -> Tensor:
        """[T, heads, n] -> [N, heads, longest, n], padded with 0."""
        if not self.is_full:
            grid = rows.new_zeros(self.count * self.longest, *rows.shape[1:])
            grid[self.places] = rows
            rows = grid
        return rows.unflatten(0, (self.count, self.longest)).transpose(1, 2)

    def packed(self, grid: Tensor) -> Tensor:
        """[N, heads, longest, n] -> [T, heads, n]."""
        rows = grid.transpose(1, 2).flatten(0, 1)
        return rows if self.is_full else rows[self.places]
