"""Image files that are damaged, disguised, huge or rare, and the reason why each has no score."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np


def files() -> dict[str, tuple[bytes, str]]:
    """Name -> the file, and a part of the reason why it has no score; "" if it has one."""
    good = {kind: _saved(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")}
    png, jpeg = good["PNG"], good["JPEG"]
    cut = len(png) // 2
    return {
        "empty": (b"", "is empty"),
        "text": (b"hello", "in no known format"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg' onload='x()'/>", "an SVG file"),
        "tiff": (good["TIFF"], "a TIFF file"),
        "zip": (b"PK\x03\x04" + bytes(100), "a zip file"),
        "pdf": (b"%PDF-1.7\n", "a PDF file"),
        "png of 60,000 × 60,000": (_png(60_000, 60_000, b""), "the limit is"),
        "png of few bytes and many pixels": (_png(7000, 7000, bytes(7000 * 7000 * 3 + 7000)), ""),
        "png with pixels missing": (_png(5000, 5000, bytes(10)), "can't be decoded"),
        "webp of 16,383 × 16,383": (_webp_of(16_383), "the limit is"),
        "gif of 65,535 × 65,535": (b"GIF89a\xff\xff\xff\xff" + good["GIF"][10:], "the limit is"),
        "gif with a frame larger than its screen": (_large_frame(good["GIF"]), "its header says"),
        "png cut": (png[:cut], "can't be decoded"),
        "jpeg cut": (jpeg[: len(jpeg) // 2], "can't be decoded"),
        "jpeg without pixels": (jpeg[: jpeg.index(b"\xff\xda")], "can't be decoded"),
        "webp cut": (good["WEBP"][: len(good["WEBP"]) // 2], "can't be decoded"),
        "png with a damaged chunk": (png[:cut] + bytes(8) + png[cut + 8 :], "can't be decoded"),
        "png with a text of 100 MB": (
            _with_chunk(png, b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8))),
            "too large",
        ),
        "jpeg with 60 kB of EXIF": (_saved("JPEG", exif=b"Exif\0\0" + bytes(60_000)), ""),
        "a jpeg with a name and type of png": (jpeg, ""),
        "1 × 1": (_saved("PNG", size=(1, 1)), ""),
        "1 × 20,000": (_saved("PNG", size=(1, 20_000)), "200 times"),
        "0 × 5": (_png(0, 5, b""), "0 × 5 pixels"),
        "CMYK jpeg": (_saved("JPEG", mode="CMYK"), ""),
        "16-bit png": (_sixteen_bits(), ""),
        "animated gif": (_saved("GIF", frames=3), ""),
        "palette with transparency": (_saved("PNG", mode="P", transparency=0), ""),
        "bmp": (good["BMP"], ""),
    }


def _saved(
    kind: str, *, mode: str = "RGB", size: tuple[int, int] = (96, 64), frames: int = 1, **more: Any
) -> bytes:
    from PIL import Image

    values = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(values).convert(mode)
    held = io.BytesIO()
    others = [Image.fromarray(values[::-1]).convert(mode)] * (frames - 1)
    animated = {"save_all": True, "append_images": others} if others else {}
    image.save(held, kind, **animated, **more)
    return held.getvalue()


def _sixteen_bits() -> bytes:
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 16).save(held, "PNG")
    return held.getvalue()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(width: int, height: int, pixels: bytes) -> bytes:
    header = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    parts = (_chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(pixels)), _chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _with_chunk(png: bytes, name: bytes, data: bytes) -> bytes:
    return png[:33] + _chunk(name, data) + png[33:]


def _webp_of(side: int) -> bytes:
    data = bytes(4) + (side - 1).to_bytes(3, "little") * 2
    held = b"WEBPVP8X" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(held)) + held


def _large_frame(gif: bytes) -> bytes:
    """A GIF file whose first frame is larger than the size in its header."""
    return gif[:6] + struct.pack("<HH", 8, 8) + gif[10:]
