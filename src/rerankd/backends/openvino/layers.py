"""Building blocks of a forward pass as OpenVINO nodes: rotary positions, masks, pooling, 8-bit matrices.

Constants are copied into the graph. Sharing numpy's memory would save the copy, but OpenVINO does not keep
the array alive and would silently read freed memory as weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.openvino.runtime import op
from rerankd.backends.worker.output_row import Output
from rerankd.backends.worker.positions import MASKED
from rerankd.formats.weights import Floats

Node = Any
"""A node of the graph. OpenVINO's Python types don't help type checking."""

# The number of weights that share a scale in a compressed matrix. OpenVINO multiplies with such matrices
# directly.
GROUP = 32


def quantised(matrix: Floats) -> Node:
    """Store a matrix as 8-bit integers with one scale per group of weights."""
    rows, columns = matrix.shape
    groups = matrix.reshape(rows, columns // GROUP, GROUP)
    scales = np.maximum(np.abs(groups).max(axis=2, keepdims=True) / 127, np.finfo(np.float32).tiny)
    return grouped(np.rint(groups / scales).astype(np.int8), scales)


def grouped(numbers: NDArray[np.int8], scales: Floats) -> Node:
    """Return the matrix [rows, groups · n] of 8-bit numbers [rows, groups, n], with a scale per group [rows,
    groups, 1]. It stays in 8 bits in memory."""
    scaled = op.multiply(op.convert(op.constant(numbers), np.float32), op.constant(scales))
    return op.reshape(scaled, ints(len(numbers), numbers.shape[1] * numbers.shape[2]), False)


def rms_norm(x: Node, gain: Floats, epsilon: float) -> Node:
    """Divide by the root mean square over the last axis, then multiply by `gain`. OpenVINO recognises this
    form and computes it as one node."""
    square = op.reduce_mean(op.power(x, op.constant(np.float32(2))), ints(-1), True)
    root = op.sqrt(op.add(square, op.constant(np.float32(epsilon))))
    normed = op.multiply(op.divide(op.constant(np.float32(1)), root), x)
    return op.multiply(normed, op.constant(gain))


def rotated(x: Node, rotation: tuple[Node, Node]) -> Node:
    """Apply rotary positions. `rotation` holds cos and sin; the coordinate pairs are (i, i + n / 2)."""
    cos, sin = rotation
    a, b = op.split(x, ints(-1, scalar=True), 2).outputs()
    first = op.subtract(op.multiply(a, cos), op.multiply(b, sin))
    second = op.add(op.multiply(b, cos), op.multiply(a, sin))
    return op.concat([first, second], -1)


def rotation(length: Node, frequencies: Floats) -> tuple[Node, Node]:
    """Return cos and sin [1, 1, tokens, n / 2] of each position times each frequency [n / 2]."""
    angles = op.multiply(op.unsqueeze(count(length), ints(1)), op.constant(frequencies[None, :]))
    angles = op.unsqueeze(angles, ints(0, 1))
    return op.cos(angles), op.sin(angles)


def frequencies(size: int, base: float) -> Floats:
    """Return the frequencies [size / 2] of rotary positions for heads of this size."""
    return (base ** (-np.arange(0, size, 2) / size)).astype(np.float32)


def gelu(x: Node) -> Node:
    """Apply GELU in its exact form, with the error function."""
    return op.gelu(x, "erf")


def capped(x: Node, cap: float) -> Node:
    """Return cap · tanh(x / cap), which is between -cap and cap."""
    return op.multiply(
        op.tanh(op.multiply(x, op.constant(np.float32(1 / cap)))), op.constant(np.float32(cap))
    )


def score_of(output: Output, states: Node) -> Node:
    """Return the scores [texts] of the states [texts, 1, width] of each text's last token."""
    first, *second = (
        op.reduce_sum(op.multiply(states, op.constant(row)), ints(1, 2), False) for row in output.rows
    )
    if output.cap:
        first, second = capped(first, output.cap), [capped(one, output.cap) for one in second]
    return op.subtract(first, *second) if second else first


def tokens(x: Node) -> Node:
    """Return the number of tokens (padding included) of states [texts, tokens, width]."""
    return op.squeeze(op.gather(op.shape_of(x), ints(1), ints(0)), ints(0))


def count(length: Node) -> Node:
    """Return 0, 1, … length - 1 as floats."""
    zero, one = (op.constant(np.array(value, np.int64)) for value in (0, 1))
    return op.convert(op.range(zero, length, one, "i64"), np.float32)


def band(length: Node, reach: int) -> Node:
    """Return the mask of local attention [1, 1, tokens, tokens]: 0 if two tokens are at most `reach` apart,
    else MASKED."""
    places = count(length)
    # In four dimensions from the start: OpenVINO then computes it and the sum with another mask as one node,
    # and holds one matrix of tokens × tokens instead of two.
    apart = op.abs(op.subtract(op.unsqueeze(places, ints(0, 1, 3)), op.unsqueeze(places, ints(0, 1, 2))))
    far = op.greater(apart, op.constant(np.float32(reach)))
    return op.select(far, op.constant(np.float32(MASKED)), op.constant(np.float32(0)))


def seen_any(mask: Node) -> Node:
    """Return [texts, tokens, 1]: 1 for a token that sees any token by the mask [texts, 1, tokens, tokens],
    else 0."""
    best = op.reduce_max(mask, ints(-1), True)
    seen = op.convert(op.greater(best, op.constant(np.float32(MASKED / 2))), np.float32)
    return op.squeeze(seen, ints(1))


def mean(states: Node, mask: Node) -> Node:
    """Return the mean state of all tokens but padding: [texts, tokens, width] -> [texts, width]."""
    real = op.convert(op.greater(mask, op.constant(np.float32(MASKED / 2))), np.float32)
    real = op.reshape(real, ints(0, -1, 1), True)
    total = op.reduce_sum(op.multiply(states, real), ints(1))
    return op.divide(total, op.reduce_sum(real, ints(1)))


def first(states: Node) -> Node:
    """Return the first token's state: [texts, tokens, width] -> [texts, 1, width]."""
    return op.slice(states, ints(0), ints(1), ints(1), ints(1))


def ints(*values: int, scalar: bool = False) -> Node:
    """Return a constant vector of integers, or with `scalar` a single one, for axes and shapes."""
    return op.constant(np.array(values[0] if scalar else values, np.int64))
