"""Which layers of a Qwen model see a window of tokens only, from the keys of a file.

Source: Qwen3Model of transformers 5.
"""

from __future__ import annotations

from rerankd.formats.weights import Weights


def windows(weights: Weights) -> tuple[int | None, ...]:
    """For each layer, how many tokens before it a token sees; None: all. Raises ModelFileError if the file
    declares a window but not the layers that have it."""
    count, window = int(weights.key("block_count")), int(weights.key("attention.sliding_window", 0))
    if not window:
        return (None,) * count
    pattern = weights.key("attention.sliding_window_pattern")
    is_local = pattern if isinstance(pattern, tuple) else [(at + 1) % pattern for at in range(count)]
    # The file has the tokens that a token reads, itself included.
    return tuple(window - 1 if one else None for one in is_local[:count])
