"""(pure) The format and the size of an image, from the first bytes of its file.

The service reads only this much of an image, in Python: libraries that decode images run in the worker.
A size is that of the pixels as stored; a file may ask for a rotation when it is shown.

Sources: the specifications of PNG, GIF, WebP (container), BMP (bitmap headers), and JPEG (ITU T.81).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Format = Literal["PNG", "JPEG", "WEBP", "GIF", "BMP"]

FORMATS = "PNG, JPEG, WebP, GIF or BMP"
# The longest side may have this many times the pixels of the other one: the limit of Qwen-VL's processors.
MOST_ASPECT = 200
_OTHERS = {
    b"II*\0": "a TIFF file",
    b"MM\0*": "a TIFF file",
    b"PK\3\4": "a zip file",
    b"%PDF": "a PDF file",
    b"\x1f\x8b": "a gzip file",
    b"<svg": "an SVG file",
    b"<?xml": "an XML or SVG file",
    b"<!DO": "an HTML page",
    b"<html": "an HTML page",
    b"\0\0\1\0": "an icon",
    b"{": "JSON",
}
# JPEG's markers of a frame, which hold its size: C0 to CF without those of tables.
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# The markers that a JPEG file may have before its size. Photos have a few dozen; 20 MB of empty ones would
# keep the service, which reads them one by one, from answering others for three seconds.
_MOST_MARKERS = 1000
_FILL = re.compile(b"\xff*")


class BadImage(ValueError):
    """The image can't be used; the text is a clause that says why."""


@dataclass(frozen=True, slots=True)
class Header:
    """The format of an image, and its size in pixels."""

    format: Format
    width: int
    height: int


def checked(data: bytes, most_pixels: int) -> Header:
    """Read the header of an image that has at most this many pixels. Raises BadImage."""
    found = read(data)
    width, height = found.width, found.height
    if not width or not height:
        raise BadImage(f"its image has {width} × {height} pixels")
    if width * height > most_pixels:
        raise BadImage(
            f"its image has {width} × {height} pixels, and the limit is {most_pixels:,} (max_image_pixels)"
        )
    if max(width, height) > MOST_ASPECT * min(width, height):
        raise BadImage(
            f"its image has {width} × {height} pixels, and one side may be {MOST_ASPECT} times the other"
        )
    return found


def read(data: bytes) -> Header:
    """Read the header of an image. Raises BadImage."""
    try:
        return _read(data)
    except IndexError:
        raise BadImage("its image ends within its header") from None


def _read(data: bytes) -> Header:
    if data.startswith(b"\x89PNG\r\n\x1a\n") and data[12:16] == b"IHDR":
        return Header("PNG", _big(data, 16, 4), _big(data, 20, 4))
    if data.startswith((b"GIF87a", b"GIF89a")):
        return Header("GIF", _little(data, 6, 2), _little(data, 8, 2))
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return Header("WEBP", *_webp(data))
    if data.startswith(b"\xff\xd8\xff"):
        return Header("JPEG", *_jpeg(data))
    if data.startswith(b"BM"):
        if _little(data, 14, 4) == 12:
            return Header("BMP", _little(data, 18, 2), _little(data, 20, 2))
        height = _little(data, 22, 4)  # negative if the rows are stored from the top
        return Header("BMP", _little(data, 18, 4), min(height, 2**32 - height))
    if not data:
        raise BadImage("its image is empty")
    start = data.lstrip()[:16]
    other = next(
        (name for magic, name in _OTHERS.items() if start.startswith(magic) or data.startswith(magic)), ""
    )
    if data[4:8] == b"ftyp":
        other = "an AVIF or HEIC file, or a video"
    raise BadImage(f"its image is {other or 'in no known format'}, not {FORMATS}")


def _webp(data: bytes) -> tuple[int, int]:
    match data[12:16]:
        case b"VP8 ":
            if data[23:26] != b"\x9d\x01\x2a":
                raise BadImage("its image is damaged")
            return _little(data, 26, 2) & 0x3FFF, _little(data, 28, 2) & 0x3FFF
        case b"VP8L":
            bits = _little(data, 21, 4)
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8X":
            return _little(data, 24, 3) + 1, _little(data, 27, 3) + 1
        case _:
            raise BadImage("its image is damaged")


def _jpeg(data: bytes) -> tuple[int, int]:
    at = 2
    for _ in range(_MOST_MARKERS):
        if data[at] != 0xFF:
            raise BadImage("its image is damaged")
        match = _FILL.match(data, at)
        at = match.end() if match else at
        marker = data[at]
        if marker in _FRAMES:
            return _big(data, at + 6, 2), _big(data, at + 4, 2)
        if marker in (0xD9, 0xDA):  # the end, or pixels before a size
            raise BadImage("its image is damaged")
        at += 1
        if not 0xD0 <= marker <= 0xD8 and marker != 0x01:  # the others have a length
            at += max(_big(data, at, 2), 2)
    raise BadImage("its image has too many markers before its size")


def _big(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(_part(data, at, count), "big")


def _little(data: bytes, at: int, count: int) -> int:
    return int.from_bytes(_part(data, at, count), "little")


def _part(data: bytes, at: int, count: int) -> bytes:
    found = data[at : at + count]
    if len(found) < count:
        raise IndexError
    return found
