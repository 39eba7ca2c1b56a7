"""Files of pairs as text: JSON lines (one object per line), and CSV or TSV (line 1 names the columns).

An invalid line becomes a row with an error, and keeps its text. The output is UTF-8; the lines of JSON and
the values of CSV are those of the input, byte for byte.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from rerankd import text_files
from rerankd.bulk.rows import Chunk, Columns, Pair, Scored, pair_of
from rerankd.bulk.table import Part, check_columns, in_chunks
from rerankd.errors import BulkError

# A longer value is taken for a quotation mark that is never closed.
_LONGEST_VALUE = 2**24
# What is invalid in UTF-8 is kept, and written as it was.
_ERRORS = "surrogateescape"


class JsonLines:
    """JSON lines. The payload of a chunk is its lines without white space around them."""

    suffixes = (".jsonl", ".ndjson")

    def check_installed(self) -> None:
        pass

    def chunks(self, path: Path, columns: Columns, skip: int) -> Iterator[Chunk]:
        with _reading(path) as stream:
            lines = islice((line for line in map(str.strip, stream) if line), skip, None)
            for rows, size in in_chunks(lines, len):
                pairs = [_pair_of_line(row, columns) for row in rows]
                yield Chunk(pairs, rows, size, _share_read(stream, path))

    def write(self, path: Path, columns: Columns, part: Part) -> None:
        with _writing(path) as stream:
            for chunk, outcomes in part:
                for line, outcome in zip(chunk.payload, outcomes, strict=True):
                    stream.write(_with_outcome(line, columns, outcome))

    def join(self, parts: Sequence[Path], path: Path) -> None:
        _append(parts, path, skip=0)


def _pair_of_line(line: str, columns: Columns) -> Pair | str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"The line is not valid JSON: {error}."
    if not isinstance(value, dict):
        return "The line is not a JSON object."
    taken = [name for name in columns.added if name in value]
    if taken:
        return f"The line already has a field {taken[0]!r}. Name the new one otherwise."
    missing = [name for name in columns.read if name not in value and name != columns.instruction]
    if missing:
        return f"The field {missing[0]!r} is missing."
    return pair_of([value.get(name) for name in columns.read], columns)


def _with_outcome(line: str, columns: Columns, outcome: Scored) -> str:
    added = json.dumps(dict(zip(columns.added, (outcome.score, outcome.error), strict=True)))[1:]
    if outcome.is_row or _can_hold(line, columns):
        rest = line[:-1].rstrip()
        return f"{rest}{', ' if rest != '{' else ''}{added}\n"
    # Written as a JSON string, its invalid bytes would not be restored.
    kept = line.encode(errors=_ERRORS).decode(errors="replace")
    return f'{{"line": {json.dumps(kept, ensure_ascii=False)}, {added}\n'


def _can_hold(line: str, columns: Columns) -> bool:
    """Whether the line is a JSON object to which the outcome can be added."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not any(name in value for name in columns.added)


class Csv:
    """Values with a delimiter. The payload of a chunk is the names of the columns and the rows' values."""

    suffixes = (".csv", ".tsv")

    def __init__(self, delimiter: str) -> None:
        self._delimiter = delimiter

    def check_installed(self) -> None:
        pass

    def chunks(self, path: Path, columns: Columns, skip: int) -> Iterator[Chunk]:
        with _reading(path) as stream:
            names, rows = self.rows(stream, path, columns)
            at = [names.index(name) for name in columns.read]
            rest = islice((row for row in rows if row), skip, None)
            for values, size in in_chunks(rest, _characters):
                pairs = [_pair_of_values(row, names, at, columns) for row in values]
                yield Chunk(pairs, (names, values), size, _share_read(stream, path))

    def rows(
        self, lines: Iterable[str], file: Path | str, columns: Columns
    ) -> tuple[list[str], Iterator[list[str]]]:
        """Return the names of the columns and an iterator of the rows, where a blank line is an empty one. It
        takes no more lines than the row needs. Raises BulkError if `file`, whose lines they are, can't be
        scored."""
        csv.field_size_limit(_LONGEST_VALUE)
        reader = csv.reader(lines, delimiter=self._delimiter)

        def rows() -> Iterator[list[str]]:
            try:
                yield from reader
            except csv.Error as error:
                raise BulkError(f"{file}, line {reader.line_num}: {_csv_fault(error)}") from None

        found = rows()
        names = next(found, [])
        check_columns(file, columns, names, _delimiter_hint(names))
        return names, found

    def write(self, path: Path, columns: Columns, part: Part) -> None:
        with _writing(path) as stream:
            names = part[0][0].payload[0]
            writer = self._writer(stream)
            writer.writerow((*names, *columns.added))
            for chunk, outcomes in part:
                for row, outcome in zip(chunk.payload[1], outcomes, strict=True):
                    values = (row + [""] * len(names))[: len(names)]
                    score = "" if outcome.score is None else repr(outcome.score)
                    writer.writerow((*values, score, outcome.error or ""))

    def join(self, parts: Sequence[Path], path: Path) -> None:
        with parts[0].open(encoding="utf-8", errors=_ERRORS, newline="") as stream:
            names = next(csv.reader(stream, delimiter=self._delimiter))
        first = io.StringIO()
        self._writer(first).writerow(names)
        _append(parts, path, skip=len(first.getvalue().encode(errors=_ERRORS)))

    def _writer(self, stream: TextIO) -> Any:
        return csv.writer(stream, delimiter=self._delimiter, lineterminator="\n")


def _characters(row: list[str]) -> int:
    return sum(map(len, row))


def _csv_fault(error: csv.Error) -> str:
    if "new-line" in str(error):
        return (
            "a carriage return stands outside of quotation marks. Lines must end with a line feed, and "
            "values that hold line ends need quotation marks."
        )
    return f"{error}. A quotation mark may never be closed."


def _pair_of_values(row: list[str], names: list[str], at: list[int], columns: Columns) -> Pair | str:
    if len(row) != len(names):
        rest = f", and the rest is {row[len(names) :]}" if len(row) > len(names) else ""
        return f"The line has {len(row)} values, but there are {len(names)} columns{rest:.500}."
    return pair_of([row[index] for index in at], columns)


def _delimiter_hint(names: list[str]) -> str:
    if len(names) != 1:
        return ""
    for delimiter in (";", "\t", ",", "|"):
        if delimiter in names[0]:
            return f" If {delimiter!r} separates them, add --delimiter {delimiter!r}."
    return ""


def _reading(path: Path) -> TextIO:
    try:
        return text_files.lines(path, _ERRORS)
    except OSError as error:
        raise BulkError(f"{path} can't be read: {error.strerror}.") from None


def _share_read(stream: TextIO, path: Path) -> float:
    return stream.buffer.tell() / max(os.fstat(stream.fileno()).st_size, 1)


def _writing(path: Path) -> TextIO:
    return path.open("w", encoding="utf-8", errors=_ERRORS, newline="")


def _append(parts: Sequence[Path], path: Path, skip: int) -> None:
    """Write the parts one after the other, the later ones without their first `skip` bytes."""
    with path.open("wb") as target:
        for at, part in enumerate(parts):
            with part.open("rb") as source:
                source.seek(skip if at else 0)
                shutil.copyfileobj(source, target, 2**20)
        target.flush()
        os.fsync(target.fileno())
