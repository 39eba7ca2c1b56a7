"""Truncate text for engines that read text: the longest prefix that is tokenized as the first tokens of the
whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rerankd.ids import Ids
from rerankd.scoring import truncate
from rerankd.scoring.tokenizer import Tokenizer

Part = tuple[str, Ids, Ids, int, bool]
"""A text, the end positions of its tokens, their ids, the maximum number of tokens, and whether the tokens of
the prefix must equal those ids."""


async def shortened(tokenizer: Tokenizer, parts: Sequence[Part]) -> list[tuple[str, Ids]]:
    """For each part, its longest prefix that has at most the allowed number of tokens when tokenized by
    itself, and the ids of that prefix."""
    options = [iter(truncate.ends_to_try(text, ends, budget)) for text, ends, _, budget, _ in parts]
    found: dict[int, tuple[str, Ids]] = {}
    while left := [at for at in range(len(parts)) if at not in found]:
        tried = [parts[at][0][: next(options[at], 0)].rstrip() for at in left]
        for at, text, got in zip(left, tried, await tokenizer.encode(tried), strict=True):
            _, _, ids, budget, is_exact = parts[at]
            if not text or (len(got) <= budget and (not is_exact or np.array_equal(got, ids[: len(got)]))):
                found[at] = (text, got)
    return [found[at] for at in range(len(parts))]
