"""Decode the images of a batch. Only a worker program does this: an image that exhausts or crashes a decoder
ends the worker, and the service goes on.

The service has read each image's header and checked its size (see scoring/image_header.py). A file that
decodes to more pixels than its header says is refused, and one image is decoded at a time.
"""

from __future__ import annotations

import importlib.util
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from rerankd import processes
from rerankd.backends.worker.passes import Pixels
from rerankd.content import Image, ImageInput
from rerankd.scoring import image_header
from rerankd.scoring.engine_input import Input, Pictures, Question
from rerankd.scoring.image_header import BadImage

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_WHITE = (255, 255, 255)
# The memory of an image of this size, some 50 MB while it is decoded, is returned to the system at once.
_LARGE_PIXELS = 4_000_000


@dataclass(frozen=True, slots=True)
class Picture(Image):
    """An image with its pixels [height, width, 3], as the model reads it."""

    pixels: Pixels = field(repr=False, compare=False)


class ImageReader:
    """Decodes images for a model. Thread-safe."""

    def __init__(self, reads: ImageInput) -> None:
        if importlib.util.find_spec("PIL") is None:
            raise ImportError("Pillow, which decodes images, is not installed: pip install 'rerankd[images]'")
        self._reads = reads
        self._lock = threading.Lock()

    def decoded(self, inputs: Sequence[Input]) -> tuple[list[Input], dict[int, str]]:
        """The inputs, in order, whose images could be decoded; and why not by index for the others."""
        questions: dict[int, Question | str] = {}
        found, errors = [], {}
        for at, one in enumerate(inputs):
            key = id(one.question)
            if key not in questions:
                questions[key] = self._question(one.question)
            question = questions[key]
            if isinstance(question, str):
                errors[at] = question
            else:
                found.append(one if question is one.question else replace(one, question=question))
        return found, errors

    def _question(self, question: Question) -> Question | str:
        """The question with decoded images, or why one can't be decoded."""
        if not question.pictures:
            return question
        try:
            shown = tuple(Picture(image.data, self._pixels(image)) for image in question.pictures.in_order)
        except BadImage as error:
            return str(error)
        return replace(question, pictures=Pictures(shown))

    def _pixels(self, image: Image) -> Pixels:
        header = image_header.read(image.data)
        with self._lock:
            whole = decode(image.data, header.width * header.height)
            # A rotated image has as many blocks.
            if {whole.width, whole.height} != {header.width, header.height}:
                raise BadImage("its image has another size than its header says")
            size = self._reads.resized(whole.width, whole.height)
            found = np.asarray(whole.resize(size, resample=3), np.uint8)  # 3: bicubic
            del whole
            if header.width * header.height > _LARGE_PIXELS:
                processes.give_back()
            return found


def decode(data: bytes, most_pixels: int) -> Any:
    """The image as a PIL.Image in RGB: the first frame, turned as its EXIF data says, transparent parts on
    white. Raises BadImage."""
    from PIL import Image as pillow
    from PIL import ImageOps

    try:
        with pillow.open(io.BytesIO(data), formats=_FORMATS) as opened:
            if opened.width * opened.height > most_pixels:
                raise BadImage("its image has more pixels than its header says")
            opened.load()
            if opened.width * opened.height > most_pixels:
                raise BadImage("its first frame has more pixels than its header says")
            return _rgb(ImageOps.exif_transpose(opened))
    except BadImage:
        raise
    except Exception as error:  # the boundary to decoders, which raise errors of any kind for hostile files
        raise BadImage(f"its image can't be decoded: {str(error) or type(error).__name__!s:.100}") from None


def _rgb(image: Any) -> Any:
    from PIL import Image as pillow

    if image.mode.startswith("I"):  # 16 bits
        return pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if "A" not in image.mode and "a" not in image.mode and "transparency" not in image.info:
        return image.convert("RGB")
    whole = image.convert("RGBA")
    found = pillow.new("RGB", whole.size, _WHITE)
    found.paste(whole, mask=whole.getchannel("A"))
    return found


def spread(values: Sequence[float], errors: Mapping[int, str]) -> list[float | None]:
    """The values of all inputs in order: None for those with an error."""
    rest = iter(values)
    return [None if at in errors else next(rest) for at in range(len(values) + len(errors))]
