"""(pure) The waiting inputs of one request, and which of them go into the next batch.

The list is in reverse order: the next input is last, so taking inputs truncates the list in O(1) per input.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

NEARLY = 0.75
"""An input with at least this fraction of the tokens of the longest one may be padded to it."""


class Row(NamedTuple):
    """A waiting input (or block): its tokens, and its index in the request."""

    tokens: int
    at: int


class WaitingInputs:
    """The waiting inputs of a request. Each of `blocks` becomes one batch. With `is_ordered`, the inputs are
    taken in the request's order."""

    def __init__(
        self,
        tokens: Sequence[int],
        *,
        question: bytes = b"",
        is_ordered: bool = False,
        blocks: Sequence[Sequence[int]] = (),
    ) -> None:
        self.lengths = tokens
        self.question = question
        self.blocks = blocks
        self.is_ordered = is_ordered or bool(blocks)
        self.tokens = sum(tokens)
        if blocks:
            self._rows = [Row(sum(tokens[at] for at in block), n) for n, block in enumerate(blocks)]
        else:
            self._rows = [Row(length, at) for at, length in enumerate(tokens)]
        self._rows.reverse()
        self._is_sorted = False

    def __len__(self) -> int:
        return len(self._rows)

    def arrange(self, by_length: bool) -> None:
        """Order the inputs longest first, or as in the request."""
        by_length = by_length and not self.is_ordered
        if by_length != self._is_sorted:
            # Inputs of equal length keep the request's order.
            self._rows.sort(key=(lambda row: (row.tokens, -row.at)) if by_length else (lambda row: -row.at))
            self._is_sorted = by_length

    def first(self) -> int:
        """Tokens of the next input."""
        return self._rows[-1].tokens

    def fitting(self, longest: int, most: int) -> int:
        """How many of the next inputs, up to `most`, may be padded to `longest`. In longest-first order,
        longer inputs are skipped."""
        if self._is_sorted:
            return min(len(self._range(longest)), most)
        count = 0
        for row in reversed(self._rows[-most:]):
            if not longest * NEARLY <= row.tokens <= longest:
                break
            count += 1
        return count

    def take_fitting(self, longest: int, most: int) -> list[int]:
        """Take up to `most` inputs that may be padded to `longest`, longest first. Returns their indexes."""
        if not self._is_sorted:
            return self.take(self.fitting(longest, most))
        places = self._range(longest)[-most:] if most else range(0)
        taken = self._rows[places.start : places.stop]
        del self._rows[places.start : places.stop]
        self.tokens -= sum(row.tokens for row in taken)
        return [row.at for row in reversed(taken)]

    def padded(self, budget: int, most: int) -> tuple[int, int]:
        """How many of the next inputs, from one up to `most`, hold at most `budget` tokens when each is
        padded to the longest; and the tokens of the longest. In longest-first order, much shorter inputs are
        left for later."""
        if self._is_sorted:
            longest = self.first()
            return self.fitting(longest, min(max(budget // longest, 1), most)), longest
        count, longest = 0, 0
        for row in reversed(self._rows[-most:]):
            widest = max(longest, row.tokens)
            if count and (count + 1) * widest > budget:
                break
            count, longest = count + 1, widest
        return count, longest

    def packed(self, budget: int, most: int) -> int:
        """How many of the next inputs, up to `most`, hold at most `budget` tokens together."""
        count = 0
        for row in reversed(self._rows[-most:] if most else ()):
            budget -= row.tokens
            if budget < 0:
                break
            count += 1
        return count

    def take(self, count: int) -> list[int]:
        """Take the next `count` inputs. Returns their indexes."""
        taken = self._rows[len(self._rows) - count :]
        del self._rows[len(self._rows) - count :]
        self.tokens -= sum(row.tokens for row in taken)
        return [row.at for row in reversed(taken)]

    def take_block(self) -> Sequence[int]:
        """Take the next block. Returns the indexes of its inputs."""
        (number,) = self.take(1)
        return self.blocks[number]

    def clear(self) -> tuple[int, int]:
        """Remove all inputs. Returns how many there were, and their tokens."""
        count = sum(len(self.blocks[row.at]) for row in self._rows) if self.blocks else len(self._rows)
        tokens, self.tokens = self.tokens, 0
        self._rows.clear()
        return count, tokens

    def _range(self, longest: int) -> range:
        rows = self._rows
        start = bisect_left(rows, longest * NEARLY, key=lambda row: row.tokens)
        return range(start, bisect_right(rows, longest, key=lambda row: row.tokens))
