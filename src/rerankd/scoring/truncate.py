"""(pure) The window: how long a text may be, and where a document is cut when it is longer.

A pair uses `fixed` tokens for special tokens and template, and the query's, the instruction's and the
document's own. Queries and instructions are never cut; a document is, to the room that they leave.

Counting costs a call to the engine, so it is done only where length can matter: no token is shorter than a
byte, so a text of fewer bytes than the room fits for sure, and one of fewer than twice as many fits in
practice (English has 4 to 5 bytes a token, Chinese 3 to 4). Should such a one not fit after all, the engine
says so and the request is counted then.

`chunks` is a generator that yields the texts whose length it wants to know and is sent their token counts, so
that a caller can count for many documents in one call. It looks for the longest prefix that fits by the ratio
of tokens to characters, then steps back to the end of a sentence or a word where one is near.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

# Looking for the cut ends when no more than a 64th of the room is unused.
_UNUSED_SHARE = 64
_MOST_STEPS = 20
# As English has about: the first count then tells how this text differs.
_FIRST_GUESS_CHARACTERS_PER_TOKEN = 4
# No usual token is longer, so a rest of more characters for each token of room that is left won't fit.
_LONGEST_TOKEN_CHARACTERS = 32
# A cut moves back to a sentence's end within the last fifth, else to a word's end within the last fifth.
_NEAR = 5
_SENTENCE_ENDS = (". ", "! ", "? ", ".\n", "!\n", "?\n", "\n", "。", "！", "？", "؟")


@dataclass(frozen=True, slots=True)
class Chunks:
    """The parts of a document that are read, and whether something of it is left out."""

    texts: tuple[str, ...]
    cut: bool


def most_tokens(text: str) -> int:
    """What a text has at most, judged by its bytes."""
    # A tokenizer may put a space before a text, hence the 1.
    return len(text.encode()) + 1


def surely_fits(text: str, room: int) -> bool:
    """Whether a text can't have more than `room` tokens, judged by its bytes."""
    return len(text) < room and most_tokens(text) <= room


def likely_fits(text: str, room: int) -> bool:
    """Whether a text of ordinary language has no more than `room` tokens."""
    return len(text) <= 2 * room and (text.isascii() or len(text.encode()) <= 2 * room)


def chunks(
    text: str, room: int, most: int = 1, overlap: int = 0, limit: int | None = None
) -> Generator[str, int, Chunks]:
    """Cut `text` into at most `most` chunks of up to `room` tokens, each sharing about `overlap` tokens with
    the one before it; with `limit`, no more than so many tokens of the text are read in all.

    Yields texts to count, is sent their tokens. `room` and `limit` are at least 1.
    """
    whole = text
    if limit is not None:
        text = (yield from _longest_prefix(text, limit))[0] if not surely_fits(text, limit) else text
    found: list[str] = []
    start = 0
    while True:
        chunk, tokens = yield from _longest_prefix(text[start:], room)
        found.append(chunk)
        end = start + len(chunk)
        if end >= len(text) or len(found) == most:
            return Chunks(tuple(found), cut=bool(whole[end:].strip()))
        back = len(chunk) * min(overlap, most_overlap(room)) // max(tokens, 1)
        start = max(_word_start(text, end - back, end), start + 1)


def most_overlap(room: int) -> int:
    """How many tokens two chunks of `room` tokens may share, so that each has as many new ones."""
    return room // 2


def _longest_prefix(text: str, room: int) -> Generator[str, int, tuple[str, int]]:
    fits, fits_tokens, too_long = 0, 0, len(text) + 1
    size = min(len(text), room * _FIRST_GUESS_CHARACTERS_PER_TOKEN)
    for _ in range(_MOST_STEPS):
        tokens = yield text[:size]
        guess = size * room // max(tokens, 1)
        if tokens <= room:
            fits, fits_tokens = size, tokens
            if size == len(text):
                return text, tokens
            rest = len(text) - size
            is_too_long = too_long <= len(text) or rest > _LONGEST_TOKEN_CHARACTERS * (room - tokens + 1)
            if is_too_long and tokens >= room - room // _UNUSED_SHARE:
                break
            if not is_too_long:
                guess = len(text)  # only what is known not to fit is left out
        else:
            too_long = size
        if too_long - fits <= 1:
            break
        size = min(max(guess, fits + 1), too_long - 1)
    end = _near_end(text, fits)
    if end == fits:
        return text[:fits], fits_tokens
    # Words are tokenised apart: without the last ones there are fewer tokens. Elsewhere it has to be counted.
    tokens = fits_tokens if text[end].isspace() or text[end - 1].isspace() else (yield text[:end])
    return (text[:end], tokens) if tokens <= room else (text[:fits], fits_tokens)


def _near_end(text: str, end: int) -> int:
    """The nearest end of a sentence, else of a word, at or a little before `end`."""
    floor = end - end // _NEAR
    sentence = max(text.rfind(mark, floor, end + 1) + len(mark.rstrip() or mark) for mark in _SENTENCE_ENDS)
    if floor < sentence <= end:
        return sentence
    if end >= len(text) or text[end].isspace():
        return end
    return max((at for at in range(end, floor, -1) if text[at - 1].isspace()), default=end)


def _word_start(text: str, at: int, end: int) -> int:
    """The start of the first word at or after `at`, where there is one before `end`."""
    if at <= 0 or text[at - 1].isspace():
        return at
    return next((start for start in range(at, end) if text[start - 1].isspace()), at)
