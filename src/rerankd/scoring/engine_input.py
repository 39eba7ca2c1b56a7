"""What an engine reads: inputs as token ids, and what is counted of them.

An input is a document, or a chunk of one, beside its question. What the model reads of it is always

    question.before + ids + question.after

whatever the method: `<s> query </s></s>` and `</s>` around a document's ids (cross_encoder); the parts of a
prompt before and after the one that holds the document (causal_lm); the start and the end of a text, of which
the query is another one, `question.ids` (embedding).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from rerankd.ids import NONE as NONE
from rerankd.ids import Frame as Frame
from rerankd.ids import Ids as Ids


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """What the inputs of one request share. `query` and `instruction` are for an engine that reads text, as
    they are after truncation. `second` is the place in an input where the second token type begins, None
    where there is one type only. Questions with the same `key` are the same to an engine."""

    query: str
    instruction: str = ""
    before: Ids = field(default_factory=lambda: NONE)
    after: Ids = field(default_factory=lambda: NONE)
    ids: Ids = field(default_factory=lambda: NONE)
    second: int | None = None
    key: bytes = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.blake2b(self.query.encode("utf-8", "replace"), digest_size=16)
        digest.update(b"\0" + self.instruction.encode("utf-8", "replace"))
        lengths = (len(self.before), len(self.after), self.second)
        digest.update(b"\0%r" % (lengths,))
        for ids in (self.before, self.after, self.ids):
            digest.update(ids.tobytes())
        object.__setattr__(self, "key", digest.digest())


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """One input of a model. `text` is the document's, or for an engine that reads text the part of it that is
    read; `ids` are its own ids, truncated; `tokens` is the number of all that the engine reads for it.
    `chunk` numbers the inputs of one document."""

    question: Question
    text: str
    ids: Ids
    tokens: int
    chunk: int = 0

    @property
    def whole(self) -> Ids:
        """All ids that the model reads."""
        return np.concatenate((self.question.before, self.ids, self.question.after))

    @property
    def name(self) -> str:
        """What it is remembered by where it ends an engine; the question is no part of it."""
        return f"{self.chunk}\0{self.text}" if self.chunk else self.text
