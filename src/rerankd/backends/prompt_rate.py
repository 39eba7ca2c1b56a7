"""How fast a backend computes the prompts of causal models on this CPU: measured once, and stored.

Each backend measures the same layers with one thread (see its own prompt_rate.py), with matrices of the type
that most weights of the file have: llama.cpp b11434, built for a CPU with AVX512, computes 108 GFLOP/s with
Q8_0 and 270 with Q5_K. `auto` compares the rates, so it takes the backend that is faster on this machine.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from rerankd import machine

if TYPE_CHECKING:
    from rerankd.state import StateStore

_log = logging.getLogger("rerankd.engine")

SECTION = "prompt_rate"
WIDTH, HEADS, KV_HEADS, FEED_FORWARD, LAYERS, TOKENS = 1024, 16, 8, 3072, 3, 448
"""The layers: those of Qwen3-0.6B. A call computes TOKENS tokens."""
ROUNDS = 4
"""Calls that are timed. The fastest counts, because another program can only make a call slower."""
TIMEOUT_S = 60.0
# A failure may pass, such as a busy machine.
_FAILED_TTL_S = 3600.0


class Unrated:
    """The part of a Backend whose engines are never chosen by a measured speed."""

    def prompt_rate(self, offer: Any, learned: StateStore, *, measure: bool) -> float:
        return 0.0


def of(computes: str, learned: StateStore, measure: Callable[[], float] | None) -> float:
    """The stored rate of an engine in GFLOP/s for one thread; 0 if it is not known. `computes` is its build
    and how it computes the file. If the rate is not stored, `measure` measures it, and returns 0 if that
    fails."""
    here = "\n".join((machine.cpu_name(), *sorted(machine.cpu_flags()))).encode("utf-8", "replace")
    key = f"{computes} {hashlib.blake2b(here, digest_size=8).hexdigest()}"
    kept = learned.get(SECTION, key)
    if isinstance(kept, int | float):
        return float(kept)
    if measure is None:
        return 0.0
    found = measure()
    _log.info("%s computes prompts at %.0f GFLOP/s for one thread here", computes, found)
    learned.put(SECTION, key, found, None if found else _FAILED_TTL_S)
    return found


def gflops(seconds: float) -> float:
    """(pure) The rate of a call that took this long: 2 operations for each weight and token. In the last
    layer, both engines compute only keys and values of all tokens."""
    kv = WIDTH // HEADS * KV_HEADS
    weights = WIDTH * ((LAYERS - 1) * (2 * WIDTH + 3 * FEED_FORWARD) + LAYERS * 2 * kv)
    return 2 * weights * TOKENS / seconds / 1e9
