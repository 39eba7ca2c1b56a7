"""How Llama's rotary positions are stretched for a longer context, from the keys or a tensor of a file.

From Llama 3.1 on, frequencies that turn less than `low` times in the original context are divided by a
factor, those that turn more than `high` times are not, and others partly. A checkpoint has the numbers of
this rule as keys; GGUF's converter computes the divisors and writes them as the tensor `rope_freqs.weight`.

Source: `_compute_llama3_parameters` of transformers 5, and LlamaModel.generate_extra_tensors of llama.cpp.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from rerankd.errors import ModelFileError
from rerankd.formats.weights import Weights

DIVISORS = "rope_freqs.weight"
_NAMES = ("low_freq_factor", "high_freq_factor", "original_context_length", "factor")


def divisors(weights: Weights, size: int) -> NDArray[np.float64]:
    """Return by what the frequency of each coordinate pair of a head [size / 2] is divided. Raises
    ModelFileError if the positions are scaled in another way, or turn only a part of a head."""
    if (turned := weights.key("rope.dimension_count", size)) != size:
        raise ModelFileError(f"{weights.path}: its rotary positions turn {turned} of {size} coordinates.")
    if weights.has(DIVISORS):
        return weights.array(DIVISORS, (size // 2,)).astype(np.float64)
    scaling = weights.key("rope.scaling.type", "none")
    if scaling == "none":
        return np.ones(size // 2)
    if scaling != "llama3":
        raise ModelFileError(f"{weights.path}: its rotary positions are scaled ({scaling}).")
    low, high, original, factor = (float(weights.key(f"rope.scaling.{name}")) for name in _NAMES)
    turns = original / (2 * math.pi) * weights.key("rope.freq_base") ** (-np.arange(0, size, 2) / size)
    kept = np.clip((turns - low) / (high - low), 0, 1)
    found: NDArray[np.float64] = 1 / (kept + (1 - kept) / factor)
    return found
