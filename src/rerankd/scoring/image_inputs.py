"""Turn the documents of a request with images into the inputs of a model.

The images of a document belong to the tokens before its text, so a document with images has a question of its
own (see question.py); documents without images share one. All blocks of an image are read, or the document is
refused: a cut image would be another one.
"""

from __future__ import annotations

from collections.abc import Sequence

from rerankd.content import Content, Document
from rerankd.domain import RerankRequest
from rerankd.errors import TextsRefused, TooLong
from rerankd.scoring import image_header
from rerankd.scoring.engine_input import Input
from rerankd.scoring.image_header import BadImage
from rerankd.scoring.inputs import Reader, Reading
from rerankd.scoring.question import PreparedQuestion, Truncation


async def read(
    reader: Reader,
    request: RerankRequest,
    prepared: PreparedQuestion,
    documents: Sequence[Content],
    how: Truncation,
    numbers: Sequence[int] = (),
    *,
    most_pixels: int,
) -> Reading:
    """Like Reader.read, for documents of which some have images. Raises TextsRefused for those whose images
    can't be used or do not fit."""
    plain = [at for at, one in enumerate(documents) if isinstance(one, str)]
    texts = [one for one in documents if isinstance(one, str)]
    together = await reader.read(prepared, texts, how, [numbers[at] for at in plain] if numbers else ())
    readings = {at: (together, number) for number, at in enumerate(plain)}
    refused: dict[int, str] = {}
    for at, document in enumerate(documents):
        if not isinstance(document, Document):
            continue
        try:
            for image in document.images:
                image_header.checked(image.data, most_pixels)
            own = await reader.prepare(request.query, request.instruction, how, document.images)
        except BadImage as error:
            refused[at] = str(error)
            continue
        except TooLong:
            refused[at] = "its images and the query have more tokens than the model can read"
            continue
        one = await reader.read(own, [document.text], how, numbers[at : at + 1])
        readings[at] = (one, 0)
    if refused:
        raise TextsRefused("The images of a document can't be scored.", refused)
    return _joined([readings[at] for at in range(len(documents))])


def _joined(readings: Sequence[tuple[Reading, int]]) -> Reading:
    """One reading of documents in order: each is a number in a reading."""
    inputs: list[Input] = []
    parts: list[range] = []
    for reading, number in readings:
        start = len(inputs)
        inputs += [reading.inputs[at] for at in reading.parts[number]]
        parts.append(range(start, len(inputs)))
    truncated = frozenset(at for at, (reading, number) in enumerate(readings) if number in reading.truncated)
    overlaps = [reading.overlap for reading, _ in readings if reading.overlap is not None]
    return Reading(inputs, parts, truncated, min(overlaps, default=None))
