"""Who tokenizes for a model: the service itself, by the vocabulary in the model's files, or its engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from rerankd.scoring.sequences import Frame, Ids

# A text of as many characters is tokenized in less time than another thread takes to hear of it.
_AT_ONCE_CHARACTERS = 2_000
# What one thread does at a time; between two parts other requests' texts have their turn.
_PART_CHARACTERS = 2**18
# `tokenizers` has threads of its own; these only wait for it, without holding up the event loop.
_THREADS = ThreadPoolExecutor(2, "tokenize")


class Vocabulary(Protocol):
    """What tokenizes in this process (see formats/tokenizer.py); to be used from any thread."""

    @property
    def frame(self) -> Frame: ...

    def encode(self, texts: Sequence[str]) -> list[Ids]: ...

    def ends(self, texts: Sequence[str]) -> list[Ids]: ...


class OwnTokenizer:
    """The vocabulary of the model's files: a sequences.Tokenizer that works in threads of this process."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.frame = vocabulary.frame
        self._vocabulary = vocabulary

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        return await self._in_parts(self._vocabulary.encode, texts)

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return await self._in_parts(self._vocabulary.ends, texts)

    async def _in_parts(self, do: Callable[[Sequence[str]], list[Ids]], texts: Sequence[str]) -> list[Ids]:
        if sum(map(len, texts)) <= _AT_ONCE_CHARACTERS:
            return do(texts)
        loop = asyncio.get_running_loop()
        found: list[Ids] = []
        start = characters = 0
        for at, text in enumerate(texts):
            characters += len(text)
            if characters >= _PART_CHARACTERS or at == len(texts) - 1:
                found += await loop.run_in_executor(_THREADS, do, texts[start : at + 1])
                start, characters = at + 1, 0
        return found


Ask = Callable[[Sequence[str]], Awaitable[list[Ids]]]


class EngineTokenizer:
    """The engine's own: a sequences.Tokenizer that asks it, with the care of other calls (see calls.py)."""

    def __init__(self, frame: Frame, encode: Ask, ends: Ask) -> None:
        self.frame = frame
        self._encode = encode
        self._ends = ends

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        return await self._encode(texts)

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return await self._ends(texts)
