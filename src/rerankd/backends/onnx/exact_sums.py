"""Whether the sums of int8 products are exact on this CPU: a product with the largest numbers that occur.

quantise.py chooses scales for kernels that add pairs of neighbours in 16 bits. Another kernel, of another CPU
or a later ONNX Runtime, might add other pairs, or more of them. Its scores would then be wrong for some texts
only, which no test with ordinary texts sees. So the product is computed once for each loaded model.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rerankd.backends.onnx.graph import Graph
from rerankd.formats.weights import Floats

Product = Callable[[Floats, Floats], Floats]
"""States [tokens, columns] times the transposed matrix [rows, columns]."""

# Kernels differ for one row of states, for a few and for many. The columns are those of a narrow model; sums
# stay below 2^24, which float32 represents exactly.
_TOKENS, _COLUMNS = (1, 2, 3, 5, 64), 384


class InexactSums(RuntimeError):
    """This CPU's int8 products are not exact."""


def check(product: Product | None = None) -> None:
    """Compute the product and compare each sum. Raises InexactSums if one differs."""
    compute, weights, wrong, count = product or product_of_int8, matrix(), 0, 0
    for tokens in _TOKENS:
        # One scale of 1 for each token; as uint8, these numbers are 255 and 1.
        signs = np.ones((tokens, _COLUMNS), np.float32)
        signs[1::3] = -1
        signs[2::3, ::2] = -1
        found = compute(127 * signs, weights)
        wrong += int((np.abs(found - 127 * signs @ weights.T) > 0.5).sum())
        count += found.size
    if wrong:
        raise InexactSums(
            f"{wrong} of {count} sums of int8 products are wrong on this CPU, so int8 would give wrong "
            "scores: leave precision at auto"
        )


def matrix() -> Floats:
    """A matrix of integers [rows, columns] with the largest pairs of neighbours that a row's scale of 1
    permits. If a kernel added others in 16 bits, or more than two, a row would exceed them."""
    pairs = [(127, 0), (0, 127), (64, 63), (127, -127), (-127, 0), (0, -127), (-64, -63), (-127, 127)]
    in_turns = [
        [*one, *other] for one in pairs for other in pairs if one[0] * other[0] + one[1] * other[1] >= 0
    ]
    rows = [[*one] * (_COLUMNS // 4) for one in in_turns]
    return np.array(rows, np.float32)


def product_of_int8(states: Floats, weights: Floats) -> Floats:
    """Compute a product as models do."""
    rows, columns = weights.shape
    g = Graph("int8", 1)
    (found,) = g.linear(g.input("x", "tokens", columns), columns, [(rows, lambda: weights)])
    (result,) = g.session({"y": found})({"x": states})
    return np.asarray(result, np.float32)
