"""Requests with images: how they are read from a body, compared, and checked by their headers."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest

from rerankd.api.dialects import images
from rerankd.content import Document, Image, ImageInput, ImageLink
from rerankd.domain import RerankRequest
from rerankd.errors import InvalidRequest
from rerankd.scoring import deduplicate, image_header
from rerankd.scoring.cache import ScoreCache
from rerankd.scoring.image_header import BadImage, Header


def png(width: int, height: int) -> bytes:
    """The beginning of a PNG file."""
    data = struct.pack(">II5B", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(b"IHDR" + data))
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + data + end


JPEG = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xc2\x00\x0b\x08\x00\x20\x00\x10\x03"
HEADERS = [
    (png(640, 480), Header("PNG", 640, 480)),
    (b"GIF89a\x40\x00\x20\x00", Header("GIF", 64, 32)),
    (b"BM" + bytes(12) + struct.pack("<Iii", 40, 7, -9), Header("BMP", 7, 9)),
    (b"BM" + bytes(12) + struct.pack("<IHH", 12, 7, 9), Header("BMP", 7, 9)),
    (JPEG, Header("JPEG", 16, 32)),
    (b"\xff\xd8" + b"\xff" * 5000 + b"\xff\xe0\0\2" * 500 + JPEG[2:], Header("JPEG", 16, 32)),
    (b"RIFF\0\0\0\0WEBPVP8X" + bytes(8) + b"\x0f\0\0\x1f\0\0", Header("WEBP", 16, 32)),
    (b"RIFF\0\0\0\0WEBPVP8L" + bytes(4) + b"\x2f" + struct.pack("<I", 15 | 31 << 14), Header("WEBP", 16, 32)),
    (b"RIFF\0\0\0\0WEBPVP8 " + bytes(7) + b"\x9d\x01\x2a\x10\x00\x20\x40", Header("WEBP", 16, 32)),
]


@pytest.mark.parametrize(("data", "expected"), HEADERS)
def test_the_header_of_an_image_has_its_format_and_size(data: bytes, expected: Header) -> None:
    assert image_header.read(data) == expected
    for end in range(10):
        with pytest.raises(BadImage):
            image_header.read(data[:end])


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "is empty"),
        (b"<svg xmlns=''/>", "an SVG file, not PNG"),
        (b"  <?xml version='1.0'?><svg/>", "XML or SVG"),
        (b"II*\0....", "TIFF"),
        (b"PK\x03\x04....", "zip"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"hello", "no known format"),
        (png(0, 5), "0 × 5 pixels"),
        (png(60_000, 60_000), "the limit is 50,000,000 (max_image_pixels)"),
        (png(20_001, 100), "200 times"),
        (b"\xff\xd8\xff\xd9", "damaged"),
        (b"\xff\xd8" + b"\xff\xe0\0\2" * 2000 + JPEG[2:], "too many markers"),
        (b"\xff\xd8" + b"\xff\xd0" * 2000 + JPEG[2:], "too many markers"),
        (b"\xff\xd8" + b"\xff" * 1000, "ends within its header"),
    ],
)
def test_what_is_no_image_or_too_large_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(BadImage, match=says.replace("(", r"\(").replace(")", r"\)")):
        image_header.checked(data, 50_000_000)


@pytest.mark.parametrize(
    ("sent", "found"),
    [
        ("aGk=", Image(b"hi")),
        ("aG\nk=", Image(b"hi")),
        ("__-_", Image(b"\xff\xff\xbf")),
        ("data:image/png;base64,aGk=", Image(b"hi")),
        ("DATA:image/PNG;BASE64,aGk=", Image(b"hi")),
        ("data:image/png;base64,%2F%2f%2B%2D%5f%2b%3D%3D", Image(b"\xff\xff\xbe\xff")),
        ("data:text/plain,h%69", Image(b"hi")),
        (" HTTPS://here/A.png\n", ImageLink("https://here/A.png")),
        ("https://here/a.png", ImageLink("https://here/a.png")),
        ("kitten.png", ImageLink("kitten.png")),
        ("file:///etc/passwd", ImageLink("file:///etc/passwd")),
        ("data:", ImageLink("data:")),
        (True, ImageLink("true")),
        ({"href": "http://here/a.png"}, ImageLink("")),
    ],
)
def test_an_image_is_sent_as_base64_or_data_uri_or_link(sent: Any, found: Any) -> None:
    assert images.content({"image": sent}, "Document 0") == Document((found,))


@pytest.mark.parametrize(
    "sent",
    [
        {"video": "https://here/a.mp4"},
        {"type": "video_url", "video_url": {"url": "https://here/a.mp4"}},
        {"audio": "aGk="},
        {"content": [{"type": "text", "text": "a"}, {"type": "video_url", "video_url": {"url": "a"}}]},
    ],
)
def test_a_video_is_refused_instead_of_read_as_text(sent: Any) -> None:
    with pytest.raises(
        InvalidRequest, match=r"Document 0 has '(video|video_url|audio)', which no model here"
    ):
        images.content(sent, "Document 0")


def test_a_video_among_other_fields_belongs_to_a_record() -> None:
    assert images.content({"title": "a", "video": "b"}, "Document 0") == "title: a\nvideo: b"
    assert images.content({"text": "a", "video": "b"}, "Document 0") == "a"


def test_documents_with_the_same_image_are_scored_once() -> None:
    first, same, other = (Document((Image(data), "a")) for data in (b"x", b"x", b"y"))
    unique = deduplicate.unique_texts(["a", first, same, other, "a"])
    assert unique.text_index == (0, 1, 1, 2, 0)
    keys = ScoreCache(10, "model").keys(b"question", unique.texts)
    assert len({*keys}) == 3


def test_a_request_knows_whether_it_has_images_and_how_large_they_are() -> None:
    image = Document((Image(bytes(100_000)),))
    assert not RerankRequest("q", ("a",)).has_images
    assert RerankRequest("q", ("a", image)).has_images and RerankRequest(image, ("a",)).has_images
    assert image.__sizeof__() > 100_000


def test_the_blocks_of_an_image_are_those_of_qwen_vl() -> None:
    """The values are smart_resize's of transformers."""
    reads = ImageInput(("<", "|", ">"), 32, 4, 1800)
    sizes = [(640, 480), (1, 1), (1, 200), (8000, 6000), (48, 80), (33, 31), (4000, 20)]
    found = [reads.resized(*size) for size in sizes]
    assert found == [(640, 480), (64, 64), (32, 928), (1536, 1152), (64, 64), (96, 64), (4000, 32)]
    assert reads.blocks(640, 480) == 300
