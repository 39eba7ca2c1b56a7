"""The values of an embedding request: texts, options and vectors. Plain values without I/O or a framework."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from rerankd.errors import InvalidRequest
from rerankd.ids import Ids

Vectors = NDArray[np.float32]
"""One vector per text: [texts, width]."""
InputType = Literal["query", "document"]


@dataclass(frozen=True, slots=True)
class TokenIds:
    """A text as the token ids of the model's own tokenizer, special tokens included: int32, as bytes."""

    data: bytes

    @classmethod
    def of(cls, ids: Sequence[int]) -> TokenIds:
        """Raises OverflowError for an id that no vocabulary has."""
        return cls(np.array(ids, np.int32).tobytes())

    @property
    def ids(self) -> Ids:
        return np.frombuffer(self.data, np.int32)

    @property
    def key(self) -> bytes:
        """A cache key that no text has."""
        return b"\0ids" + self.data

    def __len__(self) -> int:
        return len(self.data) // 4

    def __sizeof__(self) -> int:
        return sys.getsizeof(self.data)


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """Texts for an embedding model. One may be a list of token ids, and is kept as TokenIds.

    `input_type`: the model's prefix for queries or documents is put before each text; None: no prefix.
    `truncate`: if False, a text that is too long is an error. `dimensions`: return only so many numbers of
    each vector, for models that were trained for it (Matryoshka). `normalize`: scale each vector to length 1.
    `keep_alive_s`: as in RerankRequest. Raises InvalidRequest for a value of the wrong type or out of range.
    """

    texts: tuple[str | TokenIds, ...]
    model: str | None = None
    input_type: InputType | None = None
    truncate: bool = True
    dimensions: int | None = None
    normalize: bool = True
    keep_alive_s: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "texts", tuple(_text(at, one) for at, one in enumerate(self.texts)))
        if self.input_type is not None and self.input_type not in get_args(InputType):
            raise InvalidRequest(
                f"input_type is {self.input_type!r:.80}, but must be 'query', 'document' or None."
            )
        if self.input_type is not None and not all(isinstance(text, str) for text in self.texts):
            raise InvalidRequest(
                "An input_type puts a prefix before each text, which token ids can't have. Send texts, or "
                "omit input_type."
            )
        if self.dimensions is not None and (type(self.dimensions) is not int or self.dimensions < 1):
            raise InvalidRequest(f"dimensions is {self.dimensions!r:.80}, but must be a number above 0.")


def _text(at: int, sent: Any) -> str | TokenIds:
    if isinstance(sent, str | TokenIds):
        return sent
    if isinstance(sent, list | tuple) and all(type(one) is int for one in sent):
        try:
            return TokenIds.of(sent)
        except OverflowError:
            raise InvalidRequest(f"Text {at} has a token id that no vocabulary has.") from None
    raise InvalidRequest(f"Text {at} is {sent!r:.80}, but must be a string or a list of token ids.")


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
