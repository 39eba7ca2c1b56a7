"""Where llama.cpp's tokens end in a text, derived from their pieces."""

from __future__ import annotations

import itertools
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.backends.llama import alignment

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)


@given(texts, st.lists(st.binary(max_size=8), max_size=40))
def test_pieces_end_in_order_and_within_the_text(text: str, pieces: list[bytes]) -> None:
    ends = alignment.ends(text, pieces)
    assert len(ends) == len(pieces) and ends.dtype == np.int32
    assert (np.diff(ends, prepend=0, append=len(text)) >= 0).all()


@given(texts, st.sets(st.integers(1, 300)), st.booleans())
def test_pieces_equal_to_the_texts_bytes_end_at_characters(
    text: str, places: set[int], has_space: bool
) -> None:
    """A piece that ends inside a character ends after it."""
    raw = text.encode()
    cuts = [0, *sorted(place for place in places if place < len(raw)), len(raw)]
    pieces = [raw[start:end] for start, end in itertools.pairwise(cuts)]
    if has_space:  # SentencePiece's
        pieces[0] = b" " + pieces[0]
    wanted = [
        next(at for at in range(len(text) + 1) if len(text[:at].encode()) >= place) for place in cuts[1:]
    ]
    assert alignment.ends(text, pieces).tolist() == wanted


@given(
    st.lists(
        st.sampled_from(["Größe", "ﬁnden", "Ｋａｎｊｉ", "İZMİR", "Ǆ", "한국어", "e\u0301tude"]), min_size=1
    )
)
def test_pieces_of_a_normalized_text_end_at_their_words(words: list[str]) -> None:
    """The pieces are lower case and without accents, as WordPiece produces them."""
    pieces = [unicodedata.normalize("NFKD", word).lower().encode() for word in words]
    ends = alignment.ends("  ".join(words), pieces)
    assert ends.tolist() == [len("  ".join(words[: at + 1])) for at in range(len(words))]


@pytest.mark.parametrize(
    ("text", "pieces", "ends"),
    [
        # An unknown piece ends where the next known piece begins.
        ("Съешь bread now", ["[UNK]", " bread", " now"], ["Съешь", "Съешь bread", "Съешь bread now"]),
        ("bread Съешь", [" bread", "[UNK]"], ["bread", "bread Съешь"]),
        ("a 漢 字 b", ["a", "[UNK]", "[UNK]", "b"], ["a", "a", "a 漢 字", "a 漢 字 b"]),
        # Omitted text belongs to the piece before it.
        ("Café\u200b now", [" cafe", " now"], ["Café\u200b", "Café\u200b now"]),
        ("", [], []),
        ("text", [], []),
    ],
)
def test_pieces_that_differ_from_the_text_are_aligned(text: str, pieces: list[str], ends: list[str]) -> None:
    found = alignment.ends(text, [piece.encode() for piece in pieces])
    assert [text[:end] for end in found] == ends
