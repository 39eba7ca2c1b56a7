"""Read users' text files: UTF-8, or what their byte order mark (BOM) says: UTF-8, UTF-16 or UTF-32.

Windows editors and shells write a BOM. Decoded as plain UTF-8, it becomes part of the first word: the id of
the first query would match no judgement.
"""

from __future__ import annotations

import codecs
from pathlib import Path
from typing import TextIO

# UTF-32's little-endian mark begins with UTF-16's. These codecs read the mark and drop it.
_BY_MARK = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def decode(data: bytes, errors: str = "strict") -> str:
    """Decode the bytes of a file, without its byte order mark; `errors` is that of `bytes.decode`.

    Raises ValueError for invalid bytes if `errors` is "strict".
    """
    return data.decode(_encoding(data[:4]), errors)


def read(path: Path) -> str:
    """Return the text of a file. Raises OSError, and ValueError for invalid bytes."""
    return decode(path.read_bytes())


def lines(path: Path, errors: str = "strict") -> TextIO:
    """Open a file as a stream of lines, which end at "\\n" only; `errors` is that of `open`. Raises OSError,
    and, while reading, ValueError for invalid bytes if `errors` is "strict"."""
    with path.open("rb") as stream:
        encoding = _encoding(stream.read(4))
    return path.open(encoding=encoding, errors=errors, newline="\n")


def _encoding(start: bytes) -> str:
    return next((name for mark, name in _BY_MARK.items() if start.startswith(mark)), "utf-8-sig")
