"""(pure) Where a text that is too long ends, and where its chunks begin: by the places of its tokens.

`ends` holds, for each token of a text, the place where it ends (see tokenizer.Tokenizer). A text is truncated
as the reference implementations do it: the first tokens are kept. An end at a sentence's end is an option.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import NamedTuple

from rerankd.scoring.engine_input import Ids

# A text ends at a sentence's end within the last fifth, else at a word's end within the last fifth.
_NEAR = 5
# English has 4 to 5 characters a token, Chinese 1 to 2.
_CHARACTERS_PER_TOKEN = 16
_MARGIN = 16
_SENTENCE_ENDS = (". ", "! ", "? ", ".\n", "!\n", "?\n", "\n", "。", "！", "？", "؟")


class Span(NamedTuple):
    """Tokens of a text, from `start` up to `stop`."""

    start: int
    stop: int


def beginning(text: str, tokens: int) -> str:
    """A beginning of a text that has more than so many tokens, up to the end of a word; all of the text where
    it is not much longer. What follows need not be tokenized. That there are enough has to be looked at:
    a word may be one token, however long."""
    most = (tokens + _MARGIN) * _CHARACTERS_PER_TOKEN
    if len(text) <= 2 * most:
        return text
    # A word's tokens depend on all of it, and the next word's on nothing before.
    end = next((at for at in range(most, 2 * most) if text[at].isspace()), 2 * most)
    return text[:end]


def most_overlap(room: int) -> int:
    """How many tokens two chunks of `room` tokens may share, so that each has as many new ones."""
    return room // 2


def chunks(
    text: str,
    ends: Ids,
    room: int,
    most: int = 1,
    overlap: int = 0,
    *,
    limit: int = sys.maxsize,
    at_sentence: bool = False,
) -> list[Span]:
    """Up to `most` chunks of `text` of up to `room` tokens, each of which begins `overlap` tokens before the
    end of the one before it, at the next start of a word where there is one. No more than the first `limit`
    tokens are read. `room` and `limit` are at least 1."""
    count = min(len(ends), limit)
    found: list[Span] = []
    start = 0
    while True:
        stop = min(start + room, count)
        if stop < len(ends) and at_sentence:
            stop = at_sentence_end(text, ends, start, stop)
        found.append(Span(start, stop))
        if stop >= count or len(found) == most:
            return found
        back = max(stop - min(overlap, most_overlap(room)), start + 1)
        start = next((at for at in range(back, stop) if _starts_word(text, ends, at)), back)


def at_sentence_end(text: str, ends: Ids, start: int, stop: int) -> int:
    """The number of tokens up to the nearest end of a sentence, else of a word, at or a little before
    `stop`."""
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


def ends_to_try(text: str, ends: Ids, room: int) -> Sequence[int]:
    """Where a beginning of `text` of up to `room` tokens may end (in characters), the longest first. A text
    that ends inside a word may have other tokens there, so the last ones are at a word's start."""
    near = [int(ends[stop - 1]) for stop in range(room, max(room - 8, 0), -1)]
    words = [int(ends[stop - 1]) for stop in range(room, 0, -1) if _starts_word(text, ends, stop)]
    return sorted({*near, *words[:8], 0}, reverse=True)


def _starts_word(text: str, ends: Ids, at: int) -> bool:
    """Whether a word starts with the token `at`, or there is no token `at`."""
    if at in (0, len(ends)):
        return True
    place = int(ends[at - 1])
    return place != ends[at] and (text[place - 1 : place].isspace() or text[place : place + 1].isspace())
