"""Read users' text files: UTF-8, or UTF-16 or UTF-32, as their byte order mark (BOM) or first bytes say.

Windows editors and shells write a BOM. Decoded as plain UTF-8, it becomes part of the first word: the id of
the first query would match no judgement. Without a BOM, UTF-16 that begins with two characters of ASCII, as
JSON does, has zeros in its first bytes, which no text in UTF-8 has (RFC 4627, section 3).
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
# Which of the first four bytes are zero.
_BY_ZEROS: dict[tuple[bool, ...], str] = {
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
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
    by_mark = next((name for mark, name in _BY_MARK.items() if start.startswith(mark)), None)
    return by_mark or _BY_ZEROS.get(tuple(byte == 0 for byte in start), "utf-8-sig")
