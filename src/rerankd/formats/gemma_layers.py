"""What the layers of Gemma 1, 2 and 3 attend to, from the keys of a file.

Source: GemmaModel, Gemma2Model and Gemma3TextModel of transformers 5, and llama.cpp for what GGUF files omit.
"""

from __future__ import annotations

from typing import NamedTuple

from rerankd.formats.weights import Weights

NORM_OFFSET = "attention.norm_offset"
"""The key of the number that is added to the weights of norms; GGUF's converter has done so already."""

# Each n-th layer is global, the others are local, unless the file has the pattern.
_PATTERNS = {"gemma2": 2, "gemma3": 6}
# The layers of the 27 B models. They scale queries by the width of the states per head, not by a head's.
_LARGEST = {"gemma2": 46, "gemma3": 62}


class Layer(NamedTuple):
    """One layer: the base of its rotary positions, the factor by which positions are divided, and how many
    tokens before it a token sees (None: all)."""

    rope_base: float
    rope_factor: float = 1.0
    window: int | None = None


def read(weights: Weights) -> tuple[Layer, ...]:
    """Return the layers. Local ones have a window, and in Gemma 3 another base and no factor. Raises
    ModelFileError if the window is missing."""
    kind, count = weights.architecture, int(weights.key("block_count"))
    base: float = weights.key("rope.freq_base", 10_000.0)
    of_local: float = weights.key("rope.freq_base_swa", 10_000.0) if kind == "gemma3" else base
    wide = Layer(base, float(weights.key("rope.scaling.factor", 1.0)))
    if kind == "gemma":
        return (wide,) * count
    # The file has the tokens that a token reads, itself included.
    local = Layer(of_local, window=int(weights.key("attention.sliding_window")) - 1)
    pattern = weights.key("attention.sliding_window_pattern", _PATTERNS[kind])
    is_local = pattern if isinstance(pattern, tuple) else [(at + 1) % pattern for at in range(count)]
    return tuple(local if one else wide for one in is_local[:count])


def query_scale(weights: Weights) -> float:
    """Return the factor of products of queries and keys."""
    kind, count = weights.architecture, int(weights.key("block_count"))
    width, heads = int(weights.key("embedding_length")), int(weights.key("attention.head_count"))
    per_head = width // heads
    if count != _LARGEST.get(kind):
        per_head = int(weights.key("attention.key_length", per_head))
    found: float = weights.key("attention.scale", per_head**-0.5)
    return found
