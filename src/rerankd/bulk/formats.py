"""The formats of files of pairs, chosen by the suffix of the file's name."""

from __future__ import annotations

from pathlib import Path

from rerankd.bulk.parquet import Parquet
from rerankd.bulk.table import Format
from rerankd.bulk.text_formats import Csv, JsonLines
from rerankd.errors import BulkError


def format_of(source: Path, target: Path, delimiter: str | None) -> Format:
    """Return the format of both files; `delimiter` is that of CSV, None for the usual one. Raises BulkError,
    and MissingExtra if a library is missing."""
    suffix = source.suffix.lower()
    formats: tuple[Format, ...] = (
        JsonLines(),
        Csv(delimiter or ("\t" if suffix == ".tsv" else ",")),
        Parquet(),
    )
    known = {name: one for one in formats for name in one.suffixes}
    found = known.get(suffix)
    if found is None:
        raise BulkError(f"{source} must end in one of: {', '.join(known)}.")
    if target.suffix.lower() != suffix:
        raise BulkError(f"{target} must have the format of {source}: its name must end in {suffix}.")
    if delimiter is not None and (not isinstance(found, Csv) or len(delimiter) != 1 or delimiter in '"\r\n'):
        raise BulkError(
            "--delimiter is one character, no quotation mark or line end, and only for CSV files."
        )
    found.check_installed()
    return found
