"""(pure) The forward passes of a batch: which inputs go through the model together, and padded how."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rerankd.scoring.engine_input import Ids

Integers = NDArray[np.int64]
Forward = Callable[[Integers, Integers, Integers], NDArray[np.float32]]
"""Ids [inputs, tokens], padded with 0, the inputs' lengths, and where the second token type begins in each
-> a row of values for each input."""
Whole = Callable[[int, int], int]
"""(number of inputs, tokens of the longest) -> how many of them go into one pass."""

# An input of at least this share of the longest one's tokens may be padded to it.
_NEARLY = 0.75


class Reading(NamedTuple):
    """What the model reads: ids, and the place where those of the second token type begin; the end where
    there are none."""

    ids: Ids
    second: int


def split(lengths: Sequence[int], most: int, whole: Whole) -> list[list[int]]:
    """The places of inputs of these lengths (1 at least), by passes, the longest inputs first. A pass holds
    inputs of nearly one length, and up to `most` tokens with padding, but one input at least."""
    waiting = sorted(range(len(lengths)), key=lengths.__getitem__)
    made = []
    while waiting:
        longest = lengths[waiting[-1]]
        near = len(waiting) - bisect_left(waiting, longest * _NEARLY, key=lengths.__getitem__)
        count = whole(min(near, max(most // longest, 1)), longest)
        made.append(waiting[-count:])
        del waiting[-count:]
    return made


def padded(readings: Sequence[Reading]) -> tuple[Integers, Integers, Integers]:
    """What `Forward` takes."""
    lengths = np.array([len(one.ids) for one in readings], np.int64)
    ids = np.zeros((len(readings), int(lengths.max())), np.int64)
    for row, one in zip(ids, readings, strict=True):
        row[: len(one.ids)] = one.ids
    return ids, lengths, np.array([one.second for one in readings], np.int64)
