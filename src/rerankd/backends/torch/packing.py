"""(pure) Pack the token sequences of a forward pass into one row of tokens, without padding.

Sequence i has the tokens offsets[i] to offsets[i + 1] of the row. Its attention reads keys that begin with
those of its prefix, if it has one, because many inputs share it. A prefix was computed before and is kept, or
is one of the first sequences of the row, whose keys of a layer are there before its attention needs them.
`key_index` selects keys from all kept prefixes, followed by the row's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rerankd.backends.worker.passes import split

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Rows = Literal["first", "last", "all", "wanted"]
"""The tokens of a sequence whose states the head reads. "wanted": those that the sequence names, or all."""

NO_PREFIX = -1
# A size that is a power of two, and not too small, takes few different values.
_SHORTEST = 16


class Tokens(NamedTuple):
    """One input of a pass: its own token ids; the position, among these, where the second token type begins;
    and the index of its prefix in the pass, or NO_PREFIX. The kept prefixes are counted first, then those of
    the row. `wanted`, `attended`: see passes.Reading."""

    ids: NDArray[np.int32]
    second: int
    prefix: int = NO_PREFIX
    wanted: NDArray[np.int32] | None = None
    attended: int | None = None


@dataclass(frozen=True, slots=True)
class PackedArrays:
    """T tokens of N sequences.

    `token_ids`, `types` [T]. `positions` [T], which count the tokens of the prefix. `offsets` and
    `key_offsets` [N + 1], where the tokens and the keys of each sequence begin. `longest` and `longest_key`:
    the most own tokens and keys of a sequence, rounded up to a power of two. `key_index` [keys], or None if
    there are no prefixes. `rows` [R], the tokens that the head reads, or None for all of them, and
    `row_counts`, how many of them belong to each sequence that is not a prefix. `attended` [N], how many of
    the first keys of a sequence its tokens see, or None if they see all.
    """

    token_ids: Int32
    positions: Int32
    types: Int32
    offsets: Int32
    key_offsets: Int32
    longest: int
    longest_key: int
    key_index: Int32 | None
    rows: Int32 | None
    row_counts: Int32
    attended: Int32 | None = None


def pack(
    sequences: Sequence[Tokens], kept_lengths: Sequence[int], rows: Rows, prefixes: int = 0
) -> PackedArrays:
    """Pack sequences of at least one token. The first `prefixes` of them are prefixes of others, and the head
    does not read them. `kept_lengths` are the lengths in tokens of the kept prefixes."""
    own = np.array([len(one.ids) for one in sequences])
    offsets, kept = _offsets(own), _offsets(np.array(kept_lengths, np.int64))
    # Where the keys of each prefix begin, and how many there are; NO_PREFIX selects the last one.
    starts = np.concatenate((kept[:-1], kept[-1] + offsets[:prefixes], [0]))
    lengths = np.concatenate((np.diff(kept), own[:prefixes], [0]))
    prefix_of = np.array([one.prefix for one in sequences])
    before = lengths[prefix_of]
    within = _within(own)
    seconds = np.array([one.second for one in sequences])
    has_index = bool(prefixes or len(kept_lengths))
    read, counts = _rows(sequences, offsets, prefixes, rows)
    return PackedArrays(
        token_ids=np.concatenate([one.ids for one in sequences]),
        positions=(within + np.repeat(before, own)).astype(np.int32),
        types=(within >= np.repeat(seconds, own)).astype(np.int32),
        offsets=offsets.astype(np.int32),
        key_offsets=_offsets(own + before).astype(np.int32),
        longest=rounded(int(own.max())),
        longest_key=rounded(int((own + before).max())),
        key_index=_key_index(own, before, starts[prefix_of], kept[-1]) if has_index else None,
        rows=read,
        row_counts=counts,
        attended=_attended(sequences, own + before),
    )


def rounded(length: int) -> int:
    """Round up to a power of two, at least 16."""
    return max(1 << (length - 1).bit_length(), _SHORTEST)


def _key_index(own: Int64, before: Int64, starts: Int64, kept: int) -> Int32:
    """Where the keys of each sequence are: first `before` ones from its prefix's start, then its own, which
    follow the `kept` keys."""
    keys = own + before
    within = _within(keys)
    in_prefix = within < np.repeat(before, keys)
    first_own = kept + _offsets(own)[:-1] - before
    first = np.where(in_prefix, np.repeat(starts, keys), np.repeat(first_own, keys))
    return (within + first).astype(np.int32)


def _attended(sequences: Sequence[Tokens], keys: Int64) -> Int32 | None:
    if all(one.attended is None for one in sequences):
        return None
    # Only sequences without a prefix name a number.
    found = [own if one.attended is None else one.attended for one, own in zip(sequences, keys, strict=True)]
    return np.array(found, np.int32)


def _rows(
    sequences: Sequence[Tokens], offsets: Int64, prefixes: int, rows: Rows
) -> tuple[Int32 | None, Int32]:
    """The tokens that the head reads, None for all of the row, and their number for each sequence."""
    starts, own = offsets[prefixes:-1], np.diff(offsets)[prefixes:]
    wanted = [one.wanted for one in sequences[prefixes:]]
    if rows == "all" or (rows == "wanted" and all(one is None for one in wanted)):
        every = np.arange(offsets[prefixes], offsets[-1], dtype=np.int32) if prefixes else None
        return every, own.astype(np.int32)
    if rows == "wanted":
        named = [
            start + (np.arange(length) if one is None else one)
            for start, length, one in zip(starts, own, wanted, strict=True)
        ]
        return np.concatenate(named).astype(np.int32), np.array([len(one) for one in named], np.int32)
    found = starts if rows == "first" else starts + own - 1
    return found.astype(np.int32), np.ones(len(own), np.int32)


def _offsets(lengths: Int64) -> Int64:
    """Where each part begins, and where the last one ends."""
    return np.concatenate(([0], np.cumsum(lengths)))


def _within(lengths: Int64) -> Int64:
    """The position of each token in its own sequence."""
    return np.arange(lengths.sum()) - np.repeat(_offsets(lengths)[:-1], lengths)


def passes(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Divide inputs of these lengths, in order, into passes of up to `most` tokens and at least one input."""
    found: list[list[int]] = []
    tokens = 0
    for at, length in enumerate(lengths):
        if not found or tokens + length > most:
            found.append([])
            tokens = 0
        found[-1].append(at)
        tokens += length
    return found


def padded_passes(lengths: Sequence[int], most: int) -> list[list[int]]:
    """The same for attention that pads: inputs of similar length share a pass."""
    return split(lengths, most, lambda count, longest: count)
