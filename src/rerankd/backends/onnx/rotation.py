"""Orthogonal matrices that spread the outliers of vectors over many coordinates (pure)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from rerankd.formats.weights import Floats

# The largest block that is rotated at run time, and the largest one for which one product is faster than two.
_LARGEST_BLOCK, _ONE_PRODUCT = 1024, 128


@cache
def orthogonal(size: int) -> Floats:
    """Return an orthogonal matrix [size, size]: a Hadamard matrix with random signs of its rows for a power
    of two, else a random one. It is the same at each call."""
    random = np.random.default_rng(size)
    if size & (size - 1):
        return np.linalg.qr(random.standard_normal((size, size)))[0].astype(np.float32)
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.block([[found, found], [found, -found]])
    signs = random.choice([-1.0, 1.0], size) if size > 1 else np.ones(1)
    hadamard: Floats = (signs[:, None] * found / size**0.5).astype(np.float32)
    return hadamard


@dataclass(frozen=True, slots=True)
class Rotation:
    """A rotation R of vectors [size], which consist of blocks of `first` · `second` numbers: each block, as a
    matrix X [first, second], becomes Aᵀ · X · B with the orthogonal matrices A and B of these sizes."""

    size: int
    first: int
    second: int

    @classmethod
    def whole(cls, size: int) -> Rotation:
        """Return a rotation that mixes all coordinates. It is cheap if `size` has two factors of about the
        same size."""
        first = next(one for one in range(int(size**0.5), 0, -1) if size % one == 0)
        return cls(size, first, size // first)

    @classmethod
    def of_blocks(cls, size: int) -> Rotation:
        """Return a rotation of blocks of a power of two, which is cheap enough for run time."""
        block = min(size & -size, _LARGEST_BLOCK)
        first = 1 if block <= _ONE_PRODUCT else 2 ** (block.bit_length() // 2)
        return cls(size, first, block // first)

    @property
    def matrices(self) -> tuple[Floats, Floats]:
        """A and B."""
        return orthogonal(self.first), orthogonal(self.second)

    def turned(self, vectors: Floats) -> Floats:
        """Return x · R for each vector x of [..., size]."""
        first, second = self.matrices
        found: Floats = (vectors.reshape(-1, self.second) @ second).reshape(-1, self.first, self.second)
        if self.first > 1:
            found = first.T @ found
        return found.reshape(vectors.shape)

    def turned_rows(self, matrix: Floats) -> Floats:
        """Return Rᵀ · W for a rotation of all coordinates and a matrix W [size, columns]."""
        first, second = self.matrices
        columns = matrix.shape[1]
        found = second.T @ matrix.reshape(self.first, self.second, columns)
        turned: Floats = first.T @ found.reshape(self.first, self.second * columns)
        return turned.reshape(matrix.shape)
