"""Matrices in int8 with one scale for each row, such that 16-bit sums of two products are exact (pure).

AVX2 multiplies uint8 by int8 and adds the products of two neighbours in 16 bits, with saturation: 2 · 255 ·
127 is too large. So a row's scale is chosen for pairs of neighbours: the positive and the negative parts of
each pair sum up to 127 at most, and 255 · 127 < 2^15. A row of normally distributed weights then keeps 96 of
127 levels. Where sums have 32 bits (AVX512_VNNI, ARM), they are exact anyway.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rerankd.formats.weights import Floats

_LARGEST = 127


class Int8(NamedTuple):
    """A matrix [rows, columns] as `numbers` [columns, rows], each times the scale of its row [rows]."""

    numbers: NDArray[np.int8]
    scales: Floats


def int8(matrix: Floats) -> Int8:
    """Round a matrix [rows, columns] with an even number of columns to the nearest numbers."""
    scales = pair_scales(matrix)
    scaled = matrix / scales[:, None]
    rounded = np.rint(scaled, out=scaled).astype(np.int8)
    return Int8(np.ascontiguousarray(rounded.T), scales)


def pair_scales(matrix: Floats) -> Floats:
    """Return for each row the smallest scale [rows] with which the sums of pairs fit.

    The larger of a pair's positive and negative part is |a + b| if a and b have the same sign, else the
    larger of |a| and |b|; so it is the largest of these three. Rounding may add half a step to each of two
    numbers: 255 · 128 = 32,640 still fits.
    """
    sums = matrix[:, 0::2] + matrix[:, 1::2]
    largest = np.maximum.reduce([np.maximum(one.max(1), -one.min(1)) for one in (matrix, sums)])
    scales: Floats = np.maximum(largest, np.float32(1e-30)) / np.float32(_LARGEST)
    return scales
