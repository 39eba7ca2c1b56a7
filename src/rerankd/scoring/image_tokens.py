"""(pure) The tokens of images in a prompt.

An image is a control token before it, one for each of its blocks, and one after it (see content.ImageInput).
It stands before the text of its side: Qwen3-VL-Reranker's own code puts images before texts, and
jina-reranker-m0 was trained with an image or a text as a side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from rerankd.content import Image, ImageInput
from rerankd.domain import Recipe
from rerankd.scoring import image_header, prompt
from rerankd.scoring.engine_input import Pictures
from rerankd.scoring.prompt import Piece

Pieces = Sequence[Piece | list[int]]


class Model(Protocol):
    """The parts of a model that the tokens of images need."""

    @property
    def recipe(self) -> Recipe: ...
    @property
    def control_tokens(self) -> Mapping[str, int]: ...


def pieces(template: str, model: Model, pictures: Pictures) -> Pieces:
    """The pieces of a template (see prompt.split) with the images of query and document; the blocks of an
    image are a list of ids. The headers of the images have been checked."""
    reads = model.recipe.images
    assert reads is not None, "only a model that reads images gets some"
    for place, images in ((prompt.QUERY, pictures.of_query), (prompt.DOCUMENT, pictures.of_document)):
        template = template.replace(place, reads.control * len(images) + place)
    block = model.control_tokens[reads.tokens[1]]
    counts = iter([blocks(reads, image) for image in pictures.in_order])
    split = prompt.split(template, model.control_tokens)
    return [[block] * next(counts) if piece == block else piece for piece in split]


def blocks(reads: ImageInput, image: Image) -> int:
    """The number of blocks of an image, which is valid."""
    header = image_header.read(image.data)
    return reads.blocks(header.width, header.height)
