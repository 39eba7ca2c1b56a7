"""Which matrices of a causal model's file are rotated once, when they are read (pure).

RMS normalisation without gains commutes with a rotation of the states. So the gains become part of the
matrices that read normalised states; these matrices, the rows of those that add to the states, and the
embeddings are rotated. A model that normalises what it adds to the states (Gemma 2 and 3) has gains in
between: its states stay as they are, and what its matrices read is rotated at run time.

In all models, the values are rotated within each head, by the rows of the matrix of values and the columns of
the output's. What the last matrix of an MLP reads is rotated at run time, because it comes from a product.
"""

from __future__ import annotations

from rerankd.backends.onnx.rotation import Rotation, orthogonal
from rerankd.formats.weights import Floats


def reading(matrix: Floats, gain: Floats, rotation: Rotation) -> Floats:
    """A matrix [rows, columns] that reads normalised states: for rotated ones without the gain [columns]."""
    return rotation.turned(matrix * gain)


def adding(matrix: Floats, rotation: Rotation | None) -> Floats:
    """A matrix [rows, columns] whose products are added to the states; rotated states, unless None."""
    return matrix if rotation is None else rotation.turned_rows(matrix)


def values(matrix: Floats, head_size: int) -> Floats:
    """The matrix, or the bias as a column, of values [heads · n, columns]: of values that are rotated in each
    head."""
    cut = matrix.reshape(-1, head_size, matrix.shape[-1])
    found: Floats = (orthogonal(head_size).T @ cut).reshape(matrix.shape)
    return found


def reading_values(matrix: Floats, head_size: int) -> Floats:
    """A matrix [rows, heads · n] for values that are rotated in each head."""
    found: Floats = (matrix.reshape(-1, head_size) @ orthogonal(head_size)).reshape(matrix.shape)
    return found
