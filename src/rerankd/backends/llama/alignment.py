"""(pure) Align tokens with their text: compute token end positions from the pieces that llama.cpp returns.

The pieces of most tokenizers add up to the text, byte for byte. Other tokenizers normalize the text: they
compose letters, drop accents, convert to lower case, or have no piece for a word. Then pieces and text are
compared in a normalized form. A piece that is not found ends where the next piece that is found begins.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from rerankd.ids import Ids

# The search range per letter of a piece. It is limited, because a short piece occurs everywhere.
_REACH = 16


def ends(text: str, pieces: Sequence[bytes]) -> Ids:
    """Return the end position of each piece in the text, in characters; positions never decrease. They are
    exact if the pieces add up to the text, optionally with a leading space, and otherwise approximate."""
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
    # places[n]: the number of characters that hold the first n letters.
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
    """Normalize a character: NFKD, case folded, without accents and spaces."""
    parts = unicodedata.normalize("NFKD", character).casefold()
    return "".join(one for one in parts if not one.isspace() and not unicodedata.combining(one))
