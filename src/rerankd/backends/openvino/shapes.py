"""(pure) The shapes that a pass may have: few, because OpenVINO keeps memory for each one it has seen.

With every shape its own, the built-in model's worker grew from 636 to 742 MiB over 500 documents of 1 to 430
tokens (231 shapes), and went on growing; with these it stays between 632 and 639 MiB (59 shapes), for 2 to
4 % more CPU time there and 8 % with documents of 1 to 60 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

from rerankd.backends.openvino.precision import Precision

TOKENS_A_PASS: Mapping[Precision, int] = {"bf16": 1024, "f32": 512}
"""What one pass holds, padding included. In bf16 there is nothing to gain beyond (15 pairs/s of BERT-large's
shape with 512 to 1,024 tokens a pass, 11.6 one by one, 5.9 in one padded batch of 64; AMX). In f32 a pass
gains nothing from its size (2,700 tokens/s of MiniLM's shape in passes of 130 as of 1,040; AVX2)."""


def tokens(longest: int, most: int) -> int:
    """The length that inputs of up to `longest` tokens are padded to: at most an eighth more from 64 tokens
    on, and never more than `most`."""
    step = 8 if longest <= 128 else 16
    while longest > 32 * step:
        step *= 2
    return max(min(-(-longest // step) * step, most), longest)


def inputs(count: int) -> int:
    """The number of inputs that a pass of `count` is padded to."""
    return 1 << (count - 1).bit_length()


def whole(count: int, longest: int, enough: int) -> int:
    """How many of `count` inputs go into the next pass: a power of two where these hold `enough` tokens,
    since a pass then gains nothing from more; else all, which are padded."""
    fewer = 1 << (count.bit_length() - 1)
    return fewer if fewer * longest >= enough else count
