"""(pure) The protocol of `POST /score`: encode and parse a batch of token ids, and the vectors of a block.

The body is one line of JSON, followed by all token ids as int32, little-endian, without separators:

    {"questions": [[before, after, ids, head, second], …], "inputs": [[question, ids], …]}

`before`, `after`, `ids` and `head` are lengths, and `question` is an index. `second` is the position in an
input where the second token type begins, or null. The token ids follow in the same order: `before`, `after`,
`ids` and `head` of each question, then those of each input. Tokens that many inputs share are sent once.

If questions have images, the line also has `"images": [[bytes, …], …]`: the sizes of each question's images,
whose files follow the ids in the same order.

The vectors of a block are a field of the JSON response: base64 of float32, little-endian, one row after the
other.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from rerankd.content import Image
from rerankd.scoring.block_scores import Vectors
from rerankd.scoring.engine_input import Ids, Input, Pictures, Question

_INT32, _FLOAT32 = np.dtype("<i4"), np.dtype("<f4")
BINARY = "application/octet-stream"


class DeviceLost(RuntimeError):
    """The device of this process computes nothing from now on. Only a new process can use it again."""


class InvalidBatch(ValueError):
    """The body is malformed, or contains ids that the model does not have."""


def render(inputs: Sequence[Input]) -> bytes:
    """Encode the inputs as a body."""
    numbers: dict[bytes, int] = {}
    questions: list[tuple[int, int, int, int, int | None]] = []
    ids: list[Ids] = []
    for one in inputs:
        question = one.question
        if question.key not in numbers:
            numbers[question.key] = len(numbers)
            parts = (question.before, question.after, question.ids, question.head)
            before, after, own, head = map(len, parts)
            questions.append((before, after, own, head, question.second))
            ids += parts
    rows = [(numbers[one.question.key], len(one.ids)) for one in inputs]
    ids += (one.ids for one in inputs)
    header: dict[str, object] = {"questions": questions, "inputs": rows}
    shown = {one.question.key: one.question.pictures.in_order for one in inputs}
    images = [shown[key] for key in numbers]
    if any(images):
        header["images"] = [[len(image.data) for image in of_question] for of_question in images]
    line = json.dumps(header, separators=(",", ":")).encode()
    held = np.concatenate(ids, dtype=_INT32).tobytes() if ids else b""
    return b"".join((line, b"\n", held, *(image.data for of_question in images for image in of_question)))


def parse(body: bytes) -> list[Input]:
    """Parse a body into inputs, without their texts. Raises InvalidBatch."""
    line, _, held = body.partition(b"\n")
    try:
        header = json.loads(line)
        declared = [
            (before, after, ids, head, second) for before, after, ids, head, second in header["questions"]
        ]
        rows = [(question, length) for question, length in header["inputs"]]
        sizes = [[*of_question] for of_question in header.get("images", [()] * len(declared))]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise InvalidBatch(f"its first line can't be read: {error!r}") from error
    lengths = [*(length for *four, _ in declared for length in four), *(length for _, length in rows)]
    indexes = [question for question, _ in rows]
    seconds = [second for *_, second in declared if second is not None]
    image_bytes = [size for of_question in sizes for size in of_question]
    if not all(type(one) is int and one >= 0 for one in (*lengths, *indexes, *seconds, *image_bytes)):
        raise InvalidBatch("its first line has a number that is neither a length nor an index")
    if max(indexes, default=-1) >= len(declared):
        raise InvalidBatch(f"an input refers to question {max(indexes)} of {len(declared)}")
    end_of_ids = sum(lengths) * _INT32.itemsize
    if end_of_ids + sum(image_bytes) != len(held) or len(sizes) != len(declared):
        raise InvalidBatch(f"its first line declares {sum(lengths)} ids, but {len(held)} bytes follow")
    ids = np.frombuffer(held[:end_of_ids], _INT32)
    files = iter([held[end - size : end] for size, end in _ends(image_bytes, end_of_ids)])
    parts = iter([ids[end - length : end] for length, end in zip(lengths, accumulate(lengths), strict=True)])
    questions = [
        Question(
            "",
            before=next(parts),
            after=next(parts),
            ids=next(parts),
            head=next(parts),
            second=second,
            pictures=Pictures(tuple(Image(next(files)) for _ in of_question)),
        )
        for (*_, second), of_question in zip(declared, sizes, strict=True)
    ]
    return [_input(questions[index], next(parts)) for index in indexes]


def render_vectors(rows: Vectors) -> str:
    """Encode the rows of a block."""
    return base64.b64encode(rows.astype(_FLOAT32).tobytes()).decode()


def parse_vectors(text: str, count: int) -> Vectors:
    """Parse `count` rows. Raises ValueError if the text does not hold so many."""
    return np.frombuffer(base64.b64decode(text), _FLOAT32).reshape(count, -1)


def _ends(sizes: Sequence[int], start: int) -> Iterable[tuple[int, int]]:
    """Each size, and where the part of this size ends, if the first one begins at `start`."""
    return zip(sizes, (start + end for end in accumulate(sizes)), strict=True)


def render_embeddings(vectors: Vectors) -> bytes:
    """Encode vectors [inputs, width] as the response of `POST /embed`."""
    return vectors.astype(_FLOAT32, copy=False).tobytes()


def parse_embeddings(data: bytes, count: int) -> Vectors:
    """Parse the vectors of `count` inputs. Raises ValueError."""
    return np.frombuffer(data, _FLOAT32).reshape(count, -1)


def _input(question: Question, ids: Ids) -> Input:
    return Input(question, "", ids, len(question.before) + len(ids) + len(question.after))
