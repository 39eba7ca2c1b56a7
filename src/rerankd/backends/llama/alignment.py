"""(pure) Where the tokens of a text end in it, from the pieces of text that llama.cpp names for its tokens.

A tokenizer that only cuts its text names pieces that make up the text again, byte for byte. Others change
what they read: they compose letters, drop accents, write small letters, or know no piece at all for a word.
Then pieces and text are compared without all that, and where they still differ the next piece that is found
in the text says where the ones before it end.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from rerankd.ids import Ids

# How far ahead a piece is looked for, in letters for each of its own: a short one stands everywhere.
_REACH = 16


def ends(text: str, pieces: Sequence[bytes]) -> Ids:
    """For each piece, the place in the text (in characters) where it ends, never before the one of the piece
    before it. Exact where the pieces are the text's bytes, perhaps with a space before them; else as near as
    can be told."""
    raw, joined = text.encode("utf-8", "surrogatepass"), b"".join(pieces)
    before = len(joined) - len(raw)
    if before in (0, 1) and joined[before:] == raw and joined[:before].isspace() == bool(before):
        starts = (np.frombuffer(raw, np.uint8) & 0xC0) != 0x80
        begun = np.concatenate(([0], np.cumsum(starts))).astype(np.int32)
        sizes = np.cumsum([len(piece) for piece in pieces], dtype=np.int64) - before
        return begun[np.maximum(sizes, 0)]
    return _found(text, [_folded(piece.decode("utf-8", "ignore")) for piece in pieces])


def _found(text: str, pieces: Sequence[str]) -> Ids:
    folded = [_letters(character) for character in text]
    letters = "".join(folded)
    # After so many letters, so many characters.
    places = np.concatenate(([0], np.repeat(np.arange(1, len(text) + 1), [len(one) for one in folded])))
    found = np.zeros(len(pieces), np.int64)
    at = 0
    for number, piece in enumerate(pieces):
        if piece and (there := letters.find(piece, at, at + (_REACH + 1) * len(piece))) >= 0:
            if number:
                found[number - 1] = there
            at = there + len(piece)
        found[number] = at
    if len(found):
        found[-1] = len(letters)
    return places[found].astype(np.int32)


def _folded(text: str) -> str:
    return "".join(map(_letters, text))


@lru_cache(4096)
def _letters(character: str) -> str:
    """What tokenizers leave of a character, as far as they agree."""
    parts = unicodedata.normalize("NFKD", character).casefold()
    return "".join(one for one in parts if not one.isspace() and not unicodedata.combining(one))
