"""(pure) How much memory an engine may hold where `max_engine_memory` does not say.

An engine holds the most when it works on its largest call. With the built-in model one went from 524 to 640
MiB, with a tiny model from 88 to 112; another kind maps the file's pages as it reads them. What grows beyond
twice that, and a gigabyte, is not a call's buffers.
"""

from __future__ import annotations

ROOM = 2**30
"""Bytes beside a multiple of what an engine held after its load."""
LONG_LIFE_S = 600.0
"""An engine that reached its bound in less time did not leak, it needs more."""


def bound(held_bytes: int, weights_bytes: int, short_lives: int) -> int:
    """Bytes that an engine may hold which held `held_bytes` right after it loaded its `weights_bytes`.
    `short_lives` counts the engines before it that reached their bound soon: each doubles it."""
    return (2 * held_bytes + max(weights_bytes - held_bytes, 0) + ROOM) << min(short_lives, 10)
