"""The interface of a file format: reading chunks of rows, writing parts with scores, joining them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rerankd.bulk.rows import Chunk, Columns, Scored
from rerankd.errors import BulkError

CHUNK_ROWS = 256
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


def check_columns(path: Path, columns: Columns, names: Sequence[str], hint: str = "") -> None:
    """Raise BulkError unless a file with columns of these names has those to read, and none of those to
    add."""
    missing = [name for name in columns.read if name not in names]
    if missing:
        raise BulkError(
            f"{path} has no column {missing[0]!r}. Its columns are: {', '.join(map(str, names)) or 'none'}. "
            f"Name yours with --query-column and --document-column.{hint}"
        )
    taken = [name for name in columns.added if name in names]
    if taken:
        raise BulkError(
            f"{path} already has a column {taken[0]!r}. Name the new one otherwise: "
            "--score-column, --error-column."
        )
