"""What a query or a document consists of: a text, or parts that are texts and images.

A text alone is a `str`, so requests without images cost nothing more. Documents with images can be compared
and hashed: an image counts as its bytes, whose digest is computed once.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field

from rerankd.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Image:
    """The bytes of an image file. Its format is read from the bytes, never from a declared type or a name."""

    data: bytes = field(repr=False, compare=False)
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "digest", hashlib.blake2b(self.data, digest_size=16).digest())

    def __sizeof__(self) -> int:
        return sys.getsizeof(self.data)


@dataclass(frozen=True, slots=True)
class ImageLink:
    """An image that the request names instead of sending it: a URL, or a string that is neither a URL nor
    base64."""

    url: str


Part = str | Image | ImageLink


@dataclass(frozen=True, slots=True)
class Document:
    """A document or a query with images. A model reads the images first, then the texts."""

    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """Its texts, one a line."""
        return "\n".join(part for part in self.parts if isinstance(part, str))

    @property
    def images(self) -> tuple[Image, ...]:
        """Its images, without links."""
        return tuple(part for part in self.parts if isinstance(part, Image))

    @property
    def key(self) -> bytes:
        """Identifies the document. No text without NUL has the same bytes."""
        return key_of(self.images) + self.text.encode("utf-8", "replace")

    def __len__(self) -> int:
        """Its characters, as those of a text."""
        return len(self.text)

    def __bool__(self) -> bool:
        return True

    def __sizeof__(self) -> int:
        return sum(map(sys.getsizeof, self.parts))


Content = str | Document


def check(value: object, place: str) -> None:
    """Raise InvalidRequest unless the value is a Document; `place` names it in the message."""
    if not isinstance(value, Document):
        raise InvalidRequest(f"{place} is {value!r:.80}, but must be a string or a Document.")


def key_of(images: Iterable[Image]) -> bytes:
    """Identifies a sequence of images; b"" for none."""
    return b"".join(b"\0" + image.digest for image in images)


def text_of(content: Content) -> str:
    """The text of a query or a document, "" if it has images alone."""
    return content if isinstance(content, str) else content.text


def images_of(content: Content) -> tuple[Image, ...]:
    """The images of a query or a document."""
    return () if isinstance(content, str) else content.images


def with_images(text: str, images: Iterable[Image]) -> Content:
    """A text with images: the text itself if there are none."""
    shown: tuple[Part, ...] = (*images,)
    if not shown:
        return text
    return Document((*shown, text) if text else shown)


@dataclass(frozen=True, slots=True)
class ImageInput:
    """How a model reads an image: resized to blocks of `side` by `side` pixels, each of which is one token.

    An image has about as many blocks as it has pixels for, but from `least` to `most`. `tokens` are the
    control tokens before an image, for each of its blocks, and after it.
    """

    tokens: tuple[str, str, str]
    side: int
    least: int
    most: int

    @property
    def control(self) -> str:
        """The text of an image in a prompt, with one block."""
        return "".join(self.tokens)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The width and height in pixels to which an image is resized: smart_resize of Qwen2-VL's image
        processor (transformers), with its rounding."""
        side, pixels = self.side, width * height
        least, most = self.least * side**2, self.most * side**2
        sides = [round(length / side) * side for length in (width, height)]
        if sides[0] * sides[1] > most:
            by = math.sqrt(pixels / most)
            sides = [max(side, math.floor(length / by / side) * side) for length in (width, height)]
        elif sides[0] * sides[1] < least:
            by = math.sqrt(least / pixels)
            sides = [math.ceil(length * by / side) * side for length in (width, height)]
        return sides[0], sides[1]

    def blocks(self, width: int, height: int) -> int:
        """The number of tokens of an image of this size, without those before and after it."""
        resized = self.resized(width, height)
        return resized[0] * resized[1] // self.side**2
