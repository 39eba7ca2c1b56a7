"""(pure) Truncate a text, or split it into chunks, at token positions.

`ends` holds the end position of each token of a text (see tokenizer.Tokenizer). As in the reference
implementations, a truncated text keeps its first tokens; ending at a sentence is an option.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from rerankd.scoring.engine_input import Ids

# A text ends at a sentence's end in its last fifth, else at a word's end in its last fifth.
_NEAR = 5
# English has 4 to 5 characters per token, Chinese 1 to 2.
_CHARACTERS_PER_TOKEN = 16
_MARGIN = 16
_SENTENCE_ENDS = (". ", "! ", "? ", ".\n", "!\n", "?\n", "\n", "。", "！", "？", "؟")


class Span(NamedTuple):
    """A range of tokens of a text, from `start` up to but not including `stop`."""

    start: int
    stop: int


def beginning(text: str, tokens: int) -> str:
    """The start of a text, up to the end of a word, that usually has more than `tokens` tokens. Returns the
    whole text if it is not much longer. The caller must check the number of tokens: a word may be one token,
    however long."""
    most = (tokens + _MARGIN) * _CHARACTERS_PER_TOKEN
    if len(text) <= 2 * most:
        return text
    # The tokens of a word depend on the whole word, but not on the words before it.
    end = next((at for at in range(most, 2 * most) if text[at].isspace()), 2 * most)
    return text[:end]


def most_overlap(budget: int) -> int:
    """The largest number of tokens that two chunks of `budget` tokens may share: half, so that each adds as
    many."""
    return budget // 2


def chunks(
    text: str,
    ends: Ids,
    budget: int,
    most: int = 1,
    overlap: int = 0,
    *,
    limit: int = sys.maxsize,
    at_sentence: bool = False,
) -> list[Span]:
    """Split `text` into up to `most` chunks of up to `budget` tokens.

    A chunk begins `overlap` tokens before the end of the previous one, or at the next start of a word. Only
    the first `limit` tokens are read. `budget` and `limit` are at least 1.
    """
    count = min(len(ends), limit)
    found: list[Span] = []
    start = 0
    while True:
        stop = min(start + budget, count)
        if stop < len(ends) and at_sentence:
            stop = at_sentence_end(text, ends, start, stop)
        found.append(Span(start, stop))
        if stop >= count or len(found) == most:
            return found
        back = max(stop - min(overlap, most_overlap(budget)), start + 1)
        start = next((at for at in range(back, stop) if _starts_word(text, ends, at)), back)


def at_sentence_end(text: str, ends: Ids, start: int, stop: int) -> int:
    """The number of tokens up to the last end of a sentence, or else of a word, shortly before `stop`."""
    first, last = int(ends[start - 1]) if start else 0, int(ends[stop - 1])
    floor = last - (last - first) // _NEAR
    sentence = max(text.rfind(mark, floor, last + 1) + len(mark.rstrip() or mark) for mark in _SENTENCE_ENDS)
    if floor < sentence <= last:
        end = sentence
    elif text[last : last + 1].isspace():
        end = last
    else:
        end = next((at for at in range(last, floor, -1) if text[at - 1].isspace()), last)
    while stop > start + 1 and ends[stop - 1] > end:
        stop -= 1
    return stop


def is_something_left(text: str, ends: Ids, stop: int) -> bool:
    """Whether `text` has more than white space after its first `stop` tokens."""
    return bool(text[int(ends[stop - 1]) if stop else 0 :].strip())


def ends_to_try(text: str, ends: Ids, budget: int) -> Sequence[int]:
    """Positions (in characters) at which a prefix of `text` with up to `budget` tokens may end, longest
    first. A text that ends inside a word may be tokenized differently there, so the last candidates are at
    the start of a word."""
    near = [int(ends[stop - 1]) for stop in range(budget, max(budget - 8, 0), -1)]
    words = [int(ends[stop - 1]) for stop in range(budget, 0, -1) if _starts_word(text, ends, stop)]
    return sorted({*near, *words[:8], 0}, reverse=True)


def _starts_word(text: str, ends: Ids, at: int) -> bool:
    """Whether a word starts with token `at`, or `at` is the number of tokens."""
    if at in (0, len(ends)):
        return True
    place = int(ends[at - 1])
    return place != ends[at] and (text[place - 1 : place].isspace() or text[place : place + 1].isspace())
