"""(pure) Split a batch into forward passes of inputs of similar length, and pad them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rerankd.scoring.engine_input import Ids

Integers = NDArray[np.int64]
Forward = Callable[[Integers, Integers, Integers], NDArray[np.float32]]
"""A forward pass: ids [inputs, tokens], padded with 0, the inputs' lengths, and the positions where the
second token type begins -> one row of outputs per input [inputs, values], or one per token [inputs, tokens,
values]. An input with fewer `attended` ids has that length; its further ids are not padding."""
Whole = Callable[[int, int], int]
"""(number of inputs, length of the longest in tokens) -> how many of them go into one pass."""

Vectors = NDArray[np.float32]
Pixels = NDArray[np.uint8]
Pending = Callable[[], Iterable[Vectors]]
"""Waits for a forward pass that was started, and returns for each input its row [values], or its rows [rows,
values] if the network computes several for an input."""
Pause = Callable[[], None]
"""Counts a part of a long computation as progress. Raises if its caller has cancelled it."""

# Inputs at least this long, relative to the longest one, may share a pass with it.
_NEARLY = 0.75


def never() -> None:
    """The Pause of a caller that does not cancel."""


class Reading(NamedTuple):
    """One input of the model: token ids, and the position where the second token type begins (the end if
    there is none). `stem`, in parts, is the beginning that most inputs of its question have (see
    prefixes.py); this one has its first `shared` ids, and at least one id more. `attended`: all tokens see
    only the first so many; None: they see all. `wanted`: the positions of the tokens whose rows are returned,
    in this order, by a network that returns a row for each token; None for all of them. `images`: the pixels
    of its images, each [height, width, 3]."""

    ids: Ids
    second: int
    shared: int = 0
    stem: tuple[Ids, ...] = ()
    attended: int | None = None
    wanted: Ids | None = None
    images: tuple[Pixels, ...] = ()


def split(lengths: Sequence[int], most: int, whole: Whole) -> list[list[int]]:
    """Split inputs of these lengths (at least 1) into passes, the longest inputs first. Returns the indexes
    of each pass. A pass holds inputs of similar length, up to `most` tokens with padding, and at least one
    input."""
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
    """Return the arguments of `Forward`."""
    attended = [len(one.ids) if one.attended is None else one.attended for one in readings]
    lengths = np.array(attended, np.int64)
    ids = np.zeros((len(readings), max(len(one.ids) for one in readings)), np.int64)
    for row, one in zip(ids, readings, strict=True):
        row[: len(one.ids)] = one.ids
    return ids, lengths, np.array([one.second for one in readings], np.int64)


class PaddedModel(Protocol):
    """A model that reads padded inputs. A forward pass is most efficient with `tokens_a_pass` tokens, padding
    included."""

    tokens_a_pass: int

    def whole(self, count: int, longest: int) -> int:
        """See Whole."""

    def forward(self, ids: Integers, lengths: Integers, seconds: Integers) -> Vectors:
        """See Forward. One thread at a time."""


class Padding:
    """The methods of a scorer.Network for a class that is a PaddedModel."""

    passes_ahead = 0

    def passes(self: PaddedModel, readings: Sequence[Reading]) -> list[list[int]]:
        return split([len(one.ids) for one in readings], self.tokens_a_pass, self.whole)

    def start(self: PaddedModel, readings: Sequence[Reading], pause: Pause = never) -> Pending:
        rows = self.forward(*padded(readings))
        if rows.ndim == 3:
            return lambda: [
                row[: len(one.ids)] if one.wanted is None else row[one.wanted]
                for row, one in zip(rows, readings, strict=True)
            ]
        return lambda: rows
