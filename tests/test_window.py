"""Cutting, by a tokenizer of our own: a token is a word with the space before it, or a Chinese character."""

import re
from collections.abc import Generator

from hypothesis import assume, given
from hypothesis import strategies as st

from rerankd.scoring import truncate
from rerankd.scoring.truncate import Chunks

TOKEN = re.compile(r"[\u4e00-\u9fff]|\s*[^\s\u4e00-\u9fff]+|\s+")
words = st.lists(
    st.sampled_from(["panda", "a", "the", "熊猫是", "Bär.", "End!", "x" * 30, "\n", "。"]), max_size=200
)
documents = words.map(" ".join)


def count(text: str) -> int:
    return len(TOKEN.findall(text))


def run(cutter: Generator[str, int, Chunks]) -> tuple[Chunks, int]:
    asked = 0
    text = next(cutter)
    while True:
        asked += 1
        try:
            text = cutter.send(count(text))
        except StopIteration as end:
            return end.value, asked


@given(documents, st.integers(1, 60))
def test_a_chunk_is_a_prefix_that_fits_and_wastes_little(text: str, room: int) -> None:
    chunks, asked = run(truncate.chunks(text, room))
    (chunk,) = chunks.texts
    assert text.startswith(chunk)
    assert count(chunk) <= room
    assert chunks.cut == bool(text[len(chunk) :].strip())
    assert asked <= 21
    if count(text) <= room:
        assert chunk == text
    elif room >= 10:
        assert count(chunk) >= room * 3 // 5


@given(documents, st.integers(4, 40), st.integers(2, 6), st.integers(0, 10))
def test_chunks_cover_the_text_without_gaps(text: str, room: int, most: int, overlap: int) -> None:
    chunks, _ = run(truncate.chunks(text, room, most, overlap))
    assert 1 <= len(chunks.texts) <= most
    assert all(count(chunk) <= room for chunk in chunks.texts)
    covered = 0
    for chunk in chunks.texts:
        # Each begins inside or right after what came before, or leaves out white space alone.
        found = re.finditer(f"(?={re.escape(chunk)})", text)  # overlapping ones too
        starts = [match.start() for match in found] if chunk else [covered]
        possible = [start for start in starts if not text[covered:start].strip()]
        assert possible
        covered = max(covered, max(possible) + len(chunk))
    if not chunks.cut:
        assert not text[covered:].strip()


@given(documents, st.integers(4, 40), st.integers(1, 6), st.integers(1, 80))
def test_no_more_is_read_than_the_limit(text: str, room: int, most: int, limit: int) -> None:
    chunks, _ = run(truncate.chunks(text, room, most, limit=limit))
    read = "".join(chunks.texts)
    assert count(read) <= min(limit, room * most) + len(chunks.texts)
    assert all(count(chunk) <= min(room, limit) for chunk in chunks.texts)
    assert chunks.cut == bool(text[len(read) :].strip()) or text.strip() != text


@given(documents, st.integers(8, 60))
def test_a_cut_is_at_the_end_of_a_word_where_one_is_near(text: str, room: int) -> None:
    assume("x" * 30 not in text and "熊" not in text)
    (chunk,) = run(truncate.chunks(text, room))[0].texts
    rest = text[len(chunk) :]
    assert not rest or rest[0].isspace() or chunk[-1].isspace() or chunk[-1] in ".!。"


def test_a_cut_prefers_the_end_of_a_sentence() -> None:
    text = "one two three four five six seven. eight nine ten eleven twelve"
    assert run(truncate.chunks(text, 8))[0] == Chunks(("one two three four five six seven.",), cut=True)


@given(st.text())
def test_a_text_that_surely_fits_has_no_more_tokens_than_bytes(text: str) -> None:
    room = truncate.most_tokens(text)
    assert truncate.surely_fits(text, room) or len(text) >= room
    assert not truncate.surely_fits(text, room - 1)
    assert truncate.likely_fits(text, room)
