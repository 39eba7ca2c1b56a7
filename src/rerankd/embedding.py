"""The values of an embedding request: texts, options and vectors. Plain values without I/O or a framework."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rerankd.errors import InvalidRequest

Vectors = NDArray[np.float32]
"""One vector per text: [texts, width]."""
InputType = Literal["query", "document"]


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts for an embedding model.

    `input_type`: the model's prefix for queries or documents is put before each text; None: no prefix.
    `truncate`: if False, a text that is too long is an error. `dimensions`: return only so many numbers of
    each vector, for models that were trained for it (Matryoshka). `normalize`: scale each vector to length 1.
    `keep_alive_s`: as in RerankRequest. Raises InvalidRequest for a value of the wrong type or out of range.
    """

    texts: tuple[str, ...]
    model: str | None = None
    input_type: InputType | None = None
    truncate: bool = True
    dimensions: int | None = None
    normalize: bool = True
    keep_alive_s: float | None = None

    def __post_init__(self) -> None:
        for at, text in enumerate(self.texts):
            if not isinstance(text, str):
                raise InvalidRequest(f"Text {at} is {text!r:.80}, but must be a string.")
        if self.input_type is not None and self.input_type not in get_args(InputType):
            raise InvalidRequest(
                f"input_type is {self.input_type!r:.80}, but must be 'query', 'document' or None."
            )
        if self.dimensions is not None and (type(self.dimensions) is not int or self.dimensions < 1):
            raise InvalidRequest(f"dimensions is {self.dimensions!r:.80}, but must be a number above 0.")


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """`vectors` has one row per text, in order. `tokens` counts the tokens of all texts, `cached_tokens`
    those of texts whose vector was known. `truncated` are the indexes of the truncated texts. Times are in
    seconds."""

    model: str
    vectors: Vectors
    tokens: int
    cached_tokens: int = 0
    truncated: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()
    load_s: float = 0.0
    total_s: float = 0.0


def nothing(model: str) -> EmbedResult:
    """The result of a request without texts."""
    return EmbedResult(model, np.empty((0, 0), np.float32), tokens=0)


def finished(vectors: Vectors, request: EmbedRequest) -> Vectors:
    """The first `dimensions` numbers of each vector, of length 1 if the request wants that.

    Raises InvalidRequest if the vectors have fewer numbers.
    """
    width = vectors.shape[1]
    if request.dimensions is not None:
        if request.dimensions > width:
            raise InvalidRequest(
                f"dimensions is {request.dimensions!r:.80}, but the vectors of this model have {width}."
            )
        vectors = vectors[:, : request.dimensions]
    if not request.normalize:
        return vectors
    lengths: Any = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    unit: Vectors = vectors / lengths
    return unit
