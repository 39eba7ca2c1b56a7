"""Token ids, and those that a model's own tokenizer puts around texts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
"""Token ids, or places in a text: int32 [tokens]."""

NONE: Ids = np.zeros(0, np.int32)


class Frame(NamedTuple):
    """The ids that a model's own tokenizer puts around texts: `start`, `between` and `end` around those of a
    pair, `start` and `alone` around a single one. In a pair, the second token type begins with the text after
    `first_typed` ids of `between`; None where there is one type only."""

    start: Ids = NONE
    between: Ids = NONE
    end: Ids = NONE
    alone: Ids = NONE
    first_typed: int | None = None
