"""The interface of a file format: reading chunks of rows, writing parts with scores, joining them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from rerankd.bulk.rows import Chunk, Columns, Scored
from rerankd.errors import BulkError

CHUNK_ROWS = 256
# A chunk of long rows has fewer of them, at least one.
_CHUNK_SIZE = 2**22
Part = Sequence[tuple[Chunk, Sequence[Scored]]]
"""Chunks that follow each other, at least one, with the outcome of each row."""


class Format(Protocol):
    """A format of files of pairs. `suffixes` are those of its files' names, in lower case."""

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    def check_installed(self) -> None:
        """Raise MissingExtra if a library is missing."""

    def chunks(self, path: Path, columns: Columns, skip: int) -> Iterator[Chunk]:
        """Yield the rows of a file after the first `skip`. Raises BulkError if the file can't be read."""

    def write(self, path: Path, columns: Columns, part: Part) -> None:
        """Write the rows of a part with their scores to a new file. Raises OSError."""

    def join(self, parts: Sequence[Path], path: Path) -> None:
        """Write the rows of the parts, of which there is at least one, to a new file. Raises OSError."""


Row = TypeVar("Row")


def in_chunks(rows: Iterable[Row], size: Callable[[Row], int]) -> Iterator[tuple[list[Row], int]]:
    """Yield the rows in chunks, with the sum of their sizes."""
    chunk: list[Row] = []
    total = 0
    for row in rows:
        chunk.append(row)
        total += size(row)
        if len(chunk) == CHUNK_ROWS or total >= _CHUNK_SIZE:
            yield chunk, total
            chunk, total = [], 0
    if chunk:
        yield chunk, total


def check_columns(path: Path | str, columns: Columns, names: Sequence[str], hint: str = "") -> None:
    """Raise BulkError unless a file with columns of these names has those to read, each once, and none of
    those to add."""
    missing = [name for name in columns.read if name not in names]
    if missing:
        raise BulkError(
            f"{path} has no column {missing[0]!r}. Its columns are: {', '.join(map(str, names)) or 'none'}. "
            f"Name yours with --query-column and --document-column.{hint}"
        )
    double = [name for name in columns.read if names.count(name) > 1]
    if double:
        raise BulkError(
            f"{path} has {names.count(double[0])} columns {double[0]!r}. Give them different names."
        )
    taken = [name for name in columns.added if name in names]
    if taken:
        raise BulkError(
            f"{path} already has a column {taken[0]!r}. Name the new one otherwise: "
            "--score-column, --error-column."
        )
