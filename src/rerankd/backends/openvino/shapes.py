"""(pure) Padding to few tensor shapes, because OpenVINO keeps memory for each shape it has seen.

Without this padding, the RSS of the built-in model's worker grew from 636 to 742 MiB over 500 documents of 1
to 430 tokens (231 shapes), and kept growing. With it, RSS stays between 632 and 639 MiB (59 shapes), for 2 to
4 % more CPU time, and 8 % more with documents of 1 to 60 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from rerankd.backends.openvino.precision import Precision

TOKENS_A_PASS: Mapping[Precision, int] = {"bf16": 1024, "f32": 512}
"""The token budget of one forward pass, padding included. Larger passes gain nothing in bf16: 15 pairs/s of
BERT-large's shape with 512 to 1,024 tokens per pass, 11.6 with one pair per pass, 5.9 with one padded batch
of 64 (AMX). In f32 the size of a pass does not matter: 2,700 tokens/s of MiniLM's shape with 130 as with
1,040 tokens per pass (AVX2)."""


def tokens(longest: int, most: int) -> int:
    """Return the length to which inputs of up to `longest` tokens are padded: at most an eighth longer from
    64 tokens on, and never longer than `most`."""
    step = 8 if longest <= 128 else 16
    while longest > 32 * step:
        step *= 2
    return max(min(-(-longest // step) * step, most), longest)


def inputs(count: int) -> int:
    """Return the number of inputs to which a pass of `count` inputs is padded."""
    return 1 << (count - 1).bit_length()


def whole(count: int, longest: int, enough: int) -> int:
    """Return how many of `count` inputs go into the next pass: a power of two if it holds `enough` tokens to
    be efficient, else all of them, padded."""
    fewer = 1 << (count.bit_length() - 1)
    return fewer if fewer * longest >= enough else count
