"""Slices of files of pairs: what one task of a job reads, scores and writes as one part of the output.

The slice of a text file is a range of bytes, and has the lines that begin in it. JSON lines can be cut
anywhere. A CSV file is read once to know where its rows begin, because values may hold line ends. The slice
of a Parquet file or of a saved Hugging Face dataset is a range of rows.

A node copies its slice to a small local file, which is read and written by the formats of `rerankd score`
(see bulk/table.py).
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rerankd import text_files
from rerankd.bulk.formats import SUFFIXES, format_by
from rerankd.bulk.parquet import Parquet
from rerankd.bulk.rows import Columns
from rerankd.bulk.table import Format, check_columns
from rerankd.bulk.text_formats import Csv, JsonLines
from rerankd.errors import BulkError
from rerankd.ray import storage
from rerankd.ray.storage import File

# A slice of long rows has fewer of them.
_SLICE_BYTES = 2**26
_SAMPLE_BYTES = 2**18
_BLOCK_BYTES = 2**16
_WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)


@dataclass(frozen=True, slots=True)
class Slice:
    """A part of a file, from `first` up to `last`, exclusive, in bytes or rows. The first `header` bytes of
    the file belong to each of its slices."""

    file: File
    first: int
    last: int
    header: int = 0


class Source(Protocol):
    """A format of the input: how its files are cut, and how a slice becomes a file of `format`."""

    @property
    def format(self) -> Format: ...

    def cut(self, file: File, columns: Columns, rows: int) -> list[Slice]:
        """Return the slices of a file, of about `rows` rows each. Raises BulkError if it can't be scored."""

    def copy(self, one: Slice, to: Path) -> None:
        """Write the rows of a slice to a new local file. Raises BulkError."""


class JsonLinesSource:
    format = JsonLines()

    def cut(self, file: File, columns: Columns, rows: int) -> list[Slice]:
        sample = storage.read(file.url, 0, min(file.size, _SAMPLE_BYTES))
        if sample.startswith(_WIDE):
            return [Slice(file, 0, file.size)]
        step = min(max(rows * len(sample) // max(sample.count(b"\n"), 1), 1), _SLICE_BYTES)
        return [Slice(file, at, min(at + step, file.size)) for at in range(0, file.size, step)]

    def copy(self, one: Slice, to: Path) -> None:
        to.write_bytes(_lines(one))


class CsvSource:
    def __init__(self, format: Csv) -> None:
        self.format = format

    def cut(self, file: File, columns: Columns, rows: int) -> list[Slice]:
        if storage.read(file.url, 0, min(file.size, 4)).startswith(_WIDE):
            text = text_files.decode(storage.read(file.url, 0, file.size), "surrogateescape")
            for _ in self.format.rows(io.StringIO(text, newline="\n"), file.url, columns)[1]:
                pass
            return [Slice(file, 0, file.size)]
        system, path = storage.opened(file.url)
        with storage.reading(file.url), system.open(path, "rb") as stream:
            lines = _Lines(stream)
            _, found = self.format.rows(lines, file.url, columns)
            header = lines.read
            cuts, since = [header], 0
            for row in found:
                since += bool(row)
                if since == rows or lines.read - cuts[-1] >= _SLICE_BYTES:
                    cuts.append(lines.read)
                    since = 0
        ends = cuts[1:] if cuts[-1] == lines.read else [*cuts[1:], lines.read]
        return [Slice(file, first, last, header) for first, last in zip(cuts, ends, strict=False)]

    def copy(self, one: Slice, to: Path) -> None:
        to.write_bytes(storage.read(one.file.url, 0, one.header) + _lines(one))


class ParquetSource:
    format = Parquet()

    def cut(self, file: File, columns: Columns, rows: int) -> list[Slice]:
        with _parquet(file) as parquet:
            check_columns(file.url, columns, parquet.schema_arrow.names)
            found = parquet.metadata
            size = sum(found.row_group(at).total_byte_size for at in range(found.num_row_groups))
            total = found.num_rows
        return _by_rows(file, total, size, rows)

    def copy(self, one: Slice, to: Path) -> None:
        import pyarrow.parquet as pq

        with _parquet(one.file) as parquet, pq.ParquetWriter(to, parquet.schema_arrow) as writer:
            at = 0
            for group in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(group).num_rows
                if at < one.last and at + rows > one.first:
                    _copy_rows(parquet.iter_batches(row_groups=[group]), at, one, writer)
                at += rows


class SavedDatasetSource:
    """A dataset as `datasets` saves it: Arrow streams. The output is Parquet."""

    format = Parquet()

    def cut(self, file: File, columns: Columns, rows: int) -> list[Slice]:
        with _arrow(file) as stream:
            check_columns(file.url, columns, stream.schema.names)
            total = sum(batch.num_rows for batch in stream)
        return _by_rows(file, total, file.size, rows)

    def copy(self, one: Slice, to: Path) -> None:
        import pyarrow.parquet as pq

        with _arrow(one.file) as stream, pq.ParquetWriter(to, stream.schema) as writer:
            _copy_rows(stream, 0, one, writer)


def source_of(url: str, delimiter: str | None) -> tuple[Source, list[File]]:
    """Return the format of the input and its files, in their order. Raises BulkError, and MissingExtra."""
    found = storage.files(url)
    names = {file.url.rpartition("/")[2] for file in found}
    if "dataset_dict.json" in names:
        splits = sorted({file.url.split("/")[-2] for file in found if file.url.endswith("/state.json")})
        raise BulkError(f"{url} holds several datasets. Name one of them: {', '.join(splits)}.")
    if {"state.json", "dataset_info.json"} <= names:
        format_by(".parquet", url, delimiter)  # that pyarrow is installed
        return SavedDatasetSource(), _data_files(url, found)
    if len(found) > 1:
        found = [file for file in found if file.suffix in SUFFIXES]
    suffixes = sorted({file.suffix for file in found})
    if len(suffixes) != 1:
        holds = f"files of several formats: {', '.join(suffixes)}" if suffixes else "no files of pairs"
        raise BulkError(f"{url} holds {holds}. Name the files, for example {storage.inside(url, '*.jsonl')}")
    of = format_by(suffixes[0], url, delimiter)
    if isinstance(of, Csv):
        return CsvSource(of), found
    return (ParquetSource() if isinstance(of, Parquet) else JsonLinesSource()), found


def _data_files(url: str, found: Sequence[File]) -> list[File]:
    """The files of a saved dataset; others beside them are caches."""
    by_name = {file.url.rpartition("/")[2]: file for file in found}
    state = by_name["state.json"]
    try:
        names = [one["filename"] for one in json.loads(storage.read(state.url, 0, state.size))["_data_files"]]
        return [by_name[name] for name in names]
    except (KeyError, TypeError, ValueError):
        raise BulkError(f"{url} is not a complete saved dataset: see its state.json.") from None


def _by_rows(file: File, total: int, size: int, rows: int) -> list[Slice]:
    step = min(rows, max(_SLICE_BYTES * total // max(size, 1), 1))
    return [Slice(file, at, min(at + step, total)) for at in range(0, total, step)]


def _copy_rows(batches: Any, at: int, one: Slice, writer: Any) -> None:
    """Write those of the rows that the slice has; the first row of the batches is row `at` of the file."""
    for batch in batches:
        first, last = max(one.first - at, 0), min(one.last - at, batch.num_rows)
        if first < last:
            writer.write_batch(batch.slice(first, last - first))
        at += batch.num_rows
        if at >= one.last:
            return


@contextlib.contextmanager
def _parquet(file: File) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    system, path = storage.opened(file.url)
    try:
        with storage.reading(file.url), system.open(path, "rb") as stream, pq.ParquetFile(stream) as parquet:
            yield parquet
    except pa.ArrowException as error:
        raise BulkError(f"{file.url} can't be read as Parquet: {_on_one_line(error)}.") from None


@contextlib.contextmanager
def _arrow(file: File) -> Iterator[Any]:
    import pyarrow as pa

    local = storage.local_path(file.url)
    system, path = storage.opened(file.url)
    try:
        with storage.reading(file.url):
            opened = pa.memory_map(local) if local is not None else system.open(path, "rb")
            with opened as source, pa.ipc.open_stream(source) as stream:
                yield stream
    except pa.ArrowException as error:
        raise BulkError(f"{file.url} can't be read as a saved dataset: {_on_one_line(error)}.") from None


def _on_one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")


class _Lines:
    """The lines of a stream as text; `read` is the number of bytes that they had so far."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.read = stream, 0

    def __iter__(self) -> Iterator[str]:
        for line in self._stream:
            is_first, self.read = not self.read, self.read + len(line)
            yield line.decode("utf-8-sig" if is_first else "utf-8", "surrogateescape")


def _lines(one: Slice) -> bytes:
    """The lines that begin in a slice."""
    # The byte before it tells whether a line begins with the slice.
    start = max(one.first - 1, 0)
    data = storage.read(one.file.url, start, one.last)
    if one.first:
        data = data[data.index(b"\n") + 1 :] if b"\n" in data else b""
    if not data:
        return b""
    end = one.last
    rest: list[bytes] = []
    while end < one.file.size and not (rest[-1] if rest else data).endswith(b"\n"):
        block = storage.read(one.file.url, end, min(end + _BLOCK_BYTES, one.file.size))
        end += len(block)
        head, newline, _ = block.partition(b"\n")
        rest.append(head + newline)
    return data + b"".join(rest)
