"""Keys and values of the beginnings of prompts, which many inputs share; bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from torch import Tensor

SHORTEST = 16
"""A shorter beginning costs more to look up than to compute."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """The keys and values of tokens in all layers: [layers, 2, tokens, key heads, n]."""

    layers: Tensor

    @property
    def length(self) -> int:
        length: int = self.layers.shape[2]
        return length


class PrefixCache:
    """The most recently used prefixes by their token ids, up to `most_bytes` in total. Not thread-safe."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: OrderedDict[bytes, Prefix] = OrderedDict()
        self.size_bytes = 0

    def get(self, ids: bytes) -> Prefix | None:
        """The prefix with these token ids, None if it is not kept."""
        if ids in self._held:
            self._held.move_to_end(ids)
        return self._held.get(ids)

    def longest(self, ids: bytes) -> bytes:
        """The ids of the longest kept prefix with which these begin; empty for none."""
        return max((held for held in self._held if ids.startswith(held)), key=len, default=b"")

    def put(self, ids: bytes, prefix: Prefix) -> None:
        """Keep a prefix that is not kept yet, and drop those that were not used for the longest time."""
        self._held[ids] = prefix
        self.size_bytes += prefix.layers.nbytes
        while self.size_bytes > self._most_bytes:
            _, dropped = self._held.popitem(last=False)
            self.size_bytes -= dropped.layers.nbytes

    def clear(self) -> None:
        """Drop all prefixes."""
        self._held.clear()
        self.size_bytes = 0
