"""Text files that people write: UTF-8, with or without a byte order mark.

Editors and shells of Windows write the mark. Read as plain UTF-8 it becomes a part of the first word: the id
of a query then matches no other id.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TextIO

# UTF-32's little-endian mark begins with UTF-16's.
_OTHERS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def decode(data: bytes, errors: str = "strict") -> str:
    """The text of a file's bytes, without a byte order mark; `errors` as `bytes.decode` has it.

    Raises ValueError for UTF-16 and UTF-32, whose bytes would be replaced one by one, and for what is not
    UTF-8 unless `errors` says otherwise.
    """
    _check(data[:4])
    return data.decode("utf-8-sig", errors)


def read(path: Path) -> str:
    """The text of a file. Raises OSError, and ValueError as `decode` does."""
    return decode(path.read_bytes())


def lines(path: Path) -> TextIO:
    """A file as a stream of lines. Raises OSError, and ValueError as `decode` does, also while it is read."""
    with path.open("rb") as stream:
        _check(stream.read(4))
    return path.open(encoding="utf-8-sig")


def _check(start: bytes) -> None:
    for name, marks in _OTHERS.items():
        if start.startswith(marks):
            raise ValueError(f"it is in {name}; save it as UTF-8")
