"""(pure) How many tokens one forward pass may hold."""

from __future__ import annotations

ON_CPU = 2048
"""Larger passes gain nothing on a CPU, and a cancelled request waits for the end of a pass."""
MOST_ON_CARD = 65536
LEAST = 64
PREFIX_BYTES = 2**28
"""The memory for the keys and values of prompts' beginnings."""
# The part of the free memory that the states of a pass may take; the rest is for kernels and fragmentation.
_SHARE = 0.5


def on_card(free_bytes: int, bytes_a_token: int) -> int:
    """The tokens of a pass for which the memory of a card suffices. `free_bytes` is free with the weights
    loaded, `bytes_a_token` the most that is held at one time for each token."""
    return max(min(int(free_bytes * _SHARE / bytes_a_token), MOST_ON_CARD), LEAST)


def free_for(tokens: int, bytes_a_token: int) -> int:
    """The memory that must be free for a pass of this many tokens: the inverse of `on_card`."""
    return int(tokens * bytes_a_token / _SHARE)


def bytes_a_token(width: int, inner: int, bytes_a_number: int) -> int:
    """The most that a layer holds at one time for each token: the states and their norm, query, key, value
    and the mixed values, or the inner states of a gated MLP; and what padded attention copies of them."""
    return (2 * width + max(8 * width, 3 * inner)) * bytes_a_number
