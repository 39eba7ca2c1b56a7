"""Normalization maps: what `build` writes is what llama.cpp and `parse` read."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd.formats import charsmap

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=4)


def longest_match(data: bytes, text: bytes) -> tuple[int, bytes]:
    """Read the map as llama.cpp does: the length of the longest key that `text` starts with, and its
    replacement."""
    (size,) = struct.unpack_from("<I", data)
    array = struct.unpack_from(f"<{size // 4}I", data, 4)
    replacements = data[4 + size :]

    def base(node: int) -> int:
        return (array[node] >> 10) << ((array[node] & (1 << 9)) >> 6)

    node = base(0)
    found = (0, b"")
    for at, byte in enumerate(text):
        node ^= byte
        if byte == 0 or array[node] & ((1 << 31) | 0xFF) != byte:
            break
        is_leaf = array[node] >> 8 & 1
        node ^= base(node)
        if is_leaf:
            start = array[node] & ((1 << 31) - 1)
            found = (at + 1, replacements[start : replacements.index(b"\0", start)])
    return found


@given(st.dictionaries(texts.filter(bool), texts, max_size=40), st.lists(texts, max_size=10))
def test_llama_cpp_finds_every_key_and_nothing_else(replacements: dict[str, str], others: list[str]) -> None:
    data = charsmap.build(replacements)
    for text in [*replacements, *others]:
        keys = [key for key in replacements if text.startswith(key)]
        longest = max(keys, key=lambda key: len(key.encode()), default="")
        expected = (len(longest.encode()), replacements[longest].encode()) if longest else (0, b"")
        assert longest_match(data, text.encode()) == expected


@given(st.dictionaries(texts.filter(bool), texts, max_size=40))
def test_parse_returns_what_build_wrote(replacements: dict[str, str]) -> None:
    assert charsmap.parse(charsmap.build(replacements)) == replacements


@pytest.mark.parametrize("data", [b"", b"\4\0\0\0", b"\xff\xff\xff\xff", bytes(64)])
def test_invalid_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="it is not a normalization map"):
        charsmap.parse(data)


@pytest.mark.parametrize("bad", [{"": "a"}, {"\0": "a"}, {"a": "\0"}])
def test_empty_keys_and_nul_are_an_error(bad: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="can't contain"):
        charsmap.build(bad)
