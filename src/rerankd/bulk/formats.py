"""The formats of files of pairs, chosen by the suffix of the file's name."""

from __future__ import annotations

from pathlib import Path

from rerankd.bulk.parquet import Parquet
from rerankd.bulk.table import Format
from rerankd.bulk.text_formats import Csv, JsonLines
from rerankd.errors import BulkError

SUFFIXES = (*JsonLines.suffixes, *Csv.suffixes, *Parquet.suffixes)


def format_of(source: Path, target: Path, delimiter: str | None) -> Format:
    """Return the format of both files; `delimiter` is that of CSV, None for the usual one. Raises BulkError,
    and MissingExtra if a library is missing."""
    suffix = source.suffix.lower()
    if suffix in SUFFIXES and target.suffix.lower() != suffix:
        raise BulkError(f"{target} must have the format of {source}: its name must end in {suffix}.")
    return format_by(suffix, str(source), delimiter)


def format_by(suffix: str, source: str, delimiter: str | None) -> Format:
    """Return the format of `source`, which has this suffix. Raises what `format_of` raises."""
    if suffix not in SUFFIXES:
        raise BulkError(f"{source} must end in one of: {', '.join(SUFFIXES)}.")
    formats: tuple[Format, ...] = (
        JsonLines(),
        Csv(delimiter or ("\t" if suffix == ".tsv" else ",")),
        Parquet(),
    )
    found = next(one for one in formats if suffix in one.suffixes)
    if delimiter is not None and (not isinstance(found, Csv) or len(delimiter) != 1 or delimiter in '"\r\n'):
        raise BulkError(
            "--delimiter is one character, no quotation mark or line end, and only for CSV files."
        )
    found.check_installed()
    return found
