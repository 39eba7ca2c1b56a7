"""Read users' text files: UTF-8, with or without a byte order mark (BOM).

Windows editors and shells write a BOM. Decoded as plain UTF-8, it becomes part of the first word: the id of
the first query would match no judgement.
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
    """Decode the bytes of a file, without its byte order mark; `errors` is that of `bytes.decode`.

    Raises ValueError for UTF-16 and UTF-32, with any value of `errors`, and for invalid UTF-8 if `errors` is
    "strict".
    """
    _check(data[:4])
    return data.decode("utf-8-sig", errors)


def read(path: Path) -> str:
    """Return the text of a file. Raises OSError, and ValueError as `decode` does."""
    return decode(path.read_bytes())


def lines(path: Path) -> TextIO:
    """Open a file as a stream of lines. Raises OSError; and ValueError as `decode`, also while reading."""
    with path.open("rb") as stream:
        _check(stream.read(4))
    return path.open(encoding="utf-8-sig")


def _check(start: bytes) -> None:
    for name, marks in _OTHERS.items():
        if start.startswith(marks):
            raise ValueError(f"it is encoded in {name}; save it as UTF-8")
