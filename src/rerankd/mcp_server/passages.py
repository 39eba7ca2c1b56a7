"""Cut a text into passages with line numbers, which a reranker reads whole. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

# In bytes of UTF-8, which follow tokens more closely than characters do: 1,200 bytes are 250 to 450 tokens of
# English, Chinese or code, and most rerankers read 512.
TARGET_BYTES = 600
MOST_BYTES = 1200


class Passage(NamedTuple):
    """The lines `first` to `last` of a text, counted from 1."""

    first: int
    last: int
    text: str


def cut(text: str) -> Iterator[Passage]:
    """Yield the passages of a text in order. A passage ends at the first empty line after TARGET_BYTES, else
    before the line that exceeds MOST_BYTES; a longer line is cut into several passages."""
    lines: list[str] = []
    first = size = 0
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        is_blank = not line.strip()
        bytes_more = len(line.encode(errors="replace")) + 1
        if lines and (size + bytes_more > MOST_BYTES or (is_blank and size >= TARGET_BYTES)):
            yield _passage(first, lines)
            lines, size = [], 0
        if bytes_more > MOST_BYTES:
            yield from (Passage(number, number, piece) for piece in _pieces(line, bytes_more))
        elif lines or not is_blank:
            first = first if lines else number
            lines.append(line)
            size += bytes_more
    if lines:
        yield _passage(first, lines)


def _passage(first: int, lines: list[str]) -> Passage:
    while not lines[-1].strip():  # the first line is not blank
        lines.pop()
    return Passage(first, first + len(lines) - 1, "\n".join(lines))


def _pieces(line: str, size_bytes: int) -> Iterator[str]:
    step = max(1, len(line) * MOST_BYTES // size_bytes)
    for at in range(0, len(line), step):
        if piece := line[at : at + step].strip():
            yield piece
