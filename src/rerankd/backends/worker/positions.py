"""What the tokens of a causal model see: rotary positions and masks, for each kind of layers (pure)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rerankd.formats import gemma_layers, llama_rope, local_layers
from rerankd.formats.weights import Floats, Weights

MASKED = -1e9
"""The value of the attention mask for a token that is ignored."""

_GEMMA = ("gemma", "gemma2", "gemma3")
_LLAMA = ("llama", "llama-embed")


class Kind(NamedTuple):
    """A kind of layers: the angles [n / 2] of rotary positions at position 1, and how many tokens before it a
    token sees (None: all)."""

    frequencies: NDArray[np.float64]
    window: int | None = None


def kinds(weights: Weights, head_size: int) -> tuple[tuple[Kind, ...], tuple[int, ...]]:
    """Return the different kinds of layers, and the index of each layer's kind. Raises ModelFileError if the
    file lacks a key, or scales positions in a way that is not supported."""
    architecture = weights.architecture
    if architecture in _GEMMA:
        layers: Sequence[tuple[float, float, int | None]] = gemma_layers.read(weights)
    else:
        base: float = weights.key("rope.freq_base", 10000.0)
        layers = [(base, 1.0, window) for window in local_layers.windows(weights)]
    divisors = llama_rope.divisors(weights, head_size) if architecture in _LLAMA else 1.0
    exponents = -np.arange(0, head_size, 2) / head_size
    every = list(dict.fromkeys(layers))
    found = tuple(Kind(base**exponents / factor / divisors, window) for base, factor, window in every)
    return found, tuple(map(every.index, layers))


def tables(kinds: Sequence[Kind], start: int, padded: int, tokens: int) -> dict[str, Floats]:
    """Return the inputs `cos` and `sin` [kinds, tokens, n / 2] and `mask` [kinds, tokens, padded + tokens] of
    tokens behind `start` others, which are padded to `padded`."""
    places = np.arange(start, start + tokens)[:, None]
    angles = np.stack([places * kind.frequencies for kind in kinds])
    return {
        "cos": np.cos(angles).astype(np.float32),
        "sin": np.sin(angles).astype(np.float32),
        "mask": np.stack([mask(start, padded, tokens, kind.window) for kind in kinds]),
    }


def mask(start: int, padded: int, tokens: int, window: int | None = None) -> Floats:
    """Return the mask [tokens, padded + tokens] for a prefix of `start` tokens, padded to `padded`. With a
    window, a token sees that many tokens before it."""
    own = np.arange(start, start + tokens)
    before = np.arange(padded)
    places = np.concatenate((before, own))
    is_hidden = np.append(before >= start, np.zeros(tokens, bool)) | (places > own[:, None])
    if window is not None:
        is_hidden |= places < own[:, None] - window
    return np.where(is_hidden, np.float32(MASKED), np.float32(0))
