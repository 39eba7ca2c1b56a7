"""Token ids, and the special tokens that a model's tokenizer adds around texts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
"""Token ids, or positions in a text: int32 [tokens]."""

NONE: Ids = np.zeros(0, np.int32)


class Frame(NamedTuple):
    """The special tokens that a model's tokenizer adds: `start`, `between` and `end` around a pair, `start`
    and `alone` around a single text. In a pair, the second token type begins after `first_typed` ids of
    `between`; None for models with one type."""

    start: Ids = NONE
    between: Ids = NONE
    end: Ids = NONE
    alone: Ids = NONE
    first_typed: int | None = None
