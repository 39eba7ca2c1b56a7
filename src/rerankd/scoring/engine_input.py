"""The input of an engine: token ids, and their count.

An input is a document, or a chunk of one, with its question. The model reads

    question.before + ids + question.after

for every scoring method. cross_encoder: `<s> query </s></s>` and `</s>` around the document's ids. causal_lm:
the parts of the prompt before and after the one that contains the document; the ids of that part begin like
`question.head`, which is tokenized without the document. embedding: the tokens at the start and end of a
text; the query is a separate text, `question.ids`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from rerankd.content import Content, Image, key_of, with_images
from rerankd.ids import NONE as NONE
from rerankd.ids import Frame as Frame
from rerankd.ids import Ids as Ids


@dataclass(frozen=True, slots=True)
class Pictures:
    """The images of a query and of a document. A prompt has the document's before the query's if
    `document_first`."""

    of_query: tuple[Image, ...] = ()
    of_document: tuple[Image, ...] = ()
    document_first: bool = False

    @property
    def in_order(self) -> tuple[Image, ...]:
        """All images in the order of the prompt."""
        first, second = self.of_query, self.of_document
        return (*second, *first) if self.document_first else (*first, *second)

    @property
    def key(self) -> bytes:
        return key_of(self.of_query) + b"\1" + key_of(self.of_document) if self else b""

    def __bool__(self) -> bool:
        return bool(self.of_query or self.of_document)


NO_PICTURES = Pictures()


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """The parts that all inputs of one request share. `query` and `instruction` are the truncated texts, for
    an engine that reads text. `second` is the index in an input at which the second token type begins; None
    for models with one type. Questions with the same `key` are identical to an engine. `head` (causal_lm) are
    the ids of the text before the document in its part of the prompt: documents of a question share most of
    them. It is a hint, which changes no score. `pictures`: the images whose tokens are in `before` and
    `after`; with those of a document, the question is that of this document alone. `embeds`: there is no
    query, and the engine returns the vector of each input."""

    query: str
    instruction: str = ""
    before: Ids = field(default_factory=lambda: NONE)
    after: Ids = field(default_factory=lambda: NONE)
    ids: Ids = field(default_factory=lambda: NONE)
    second: int | None = None
    head: Ids = field(default_factory=lambda: NONE)
    pictures: Pictures = NO_PICTURES
    embeds: bool = False
    key: bytes = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(self.query.encode("utf-8", "replace"), digest_size=16)
        digest.update(self.pictures.key)
        digest.update(b"\0" + self.instruction.encode("utf-8", "replace"))
        lengths = (len(self.before), len(self.after), len(self.head), self.second)
        digest.update(b"\0%r" % (lengths,) + b"\0embeds" * self.embeds)
        for ids in (self.before, self.after, self.ids, self.head):
            digest.update(ids.tobytes())
        object.__setattr__(self, "key", digest.digest())

    @property
    def content(self) -> Content:
        """The query with its images."""
        return with_images(self.query, self.pictures.of_query)

    @property
    def name(self) -> str:
        """The quarantine key of the query and its instruction."""
        return f"\0{self.query}{key_of(self.pictures.of_query).hex()}\0{self.instruction}"


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """One input of a model. `text` is the document; for an engine that reads text, the part of it that is
    read. `ids` are the document's token ids, truncated. `tokens` counts all tokens that the engine reads for
    this input. `chunk` numbers the inputs of one document."""

    question: Question
    text: str
    ids: Ids
    tokens: int
    chunk: int = 0

    @property
    def whole(self) -> Ids:
        """All token ids that the model reads."""
        return np.concatenate((self.question.before, self.ids, self.question.after))

    @property
    def name(self) -> str:
        """The quarantine key of this input. It does not include the question, but the document's images."""
        shown = self.question.pictures.of_document
        if shown:
            return f"{self.chunk}\0{key_of(shown).hex()}\0{self.text}"
        return f"{self.chunk}\0{self.text}" if self.chunk else self.text
