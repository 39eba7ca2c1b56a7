"""The tokenizer of a model: in this process, with the vocabulary in the model's files, or in the engine."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TYPE_CHECKING

from rerankd import processes
from rerankd.backends.base import Offer
from rerankd.formats.metadata import ModelMetadata
from rerankd.ids import Frame, Ids
from rerankd.scoring import blocks
from rerankd.scoring.inputs import Reader
from rerankd.scoring.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rerankd.formats.tokenizer import Vocabulary

# Tokenizing this many characters takes less time than handing them to another thread.
_AT_ONCE_CHARACTERS = 2_000
# How many characters a thread tokenizes at once: the fewest that are worth another thread (about 1 ms), and
# the most before the texts of other requests get their turn.
_LEAST_CHARACTERS, _MOST_CHARACTERS = 2**13, 2**16
# `tokenizers` releases Python's lock, and a thread tokenizes 10,000 texts/s of 100 words. The engine needs
# the other cores.
_COUNT = min(max((os.cpu_count() or 1) // 4, 2), 4)
_THREADS = ThreadPoolExecutor(_COUNT, "tokenize")


class OwnTokenizer:
    """A tokenizer.Tokenizer in threads of this process, with the vocabulary in the model's files."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.frame = vocabulary.frame
        self.size = vocabulary.size
        self._vocabulary = vocabulary

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        return await self._in_parts(self._vocabulary.encode, texts)

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return await self._in_parts(self._vocabulary.ends, texts)

    async def _in_parts(self, do: Callable[[Sequence[str]], list[Ids]], texts: Sequence[str]) -> list[Ids]:
        if sum(map(len, texts)) <= _AT_ONCE_CHARACTERS:
            return do(texts)
        loop = asyncio.get_running_loop()
        parts = split(texts, _COUNT)
        left = iter(enumerate(parts))
        found: list[list[Ids]] = [[] for _ in parts]

        async def follow() -> None:
            for at, part in left:
                found[at] = await loop.run_in_executor(_THREADS, do, part)

        await asyncio.gather(*(follow() for _ in parts[:_COUNT]))
        return [*chain.from_iterable(found)]


def split(texts: Sequence[str], threads: int) -> list[Sequence[str]]:
    """(pure) Split texts into consecutive parts of about the same number of characters: one for each of the
    threads, fewer if they are small, more if they are large."""
    size = min(max(sum(map(len, texts)) // threads, _LEAST_CHARACTERS), _MOST_CHARACTERS)
    parts: list[Sequence[str]] = []
    start = characters = 0
    for at, text in enumerate(texts):
        characters += len(text)
        if characters >= size or at == len(texts) - 1:
            parts.append(texts[start : at + 1])
            start, characters = at + 1, 0
    return parts


Ask = Callable[[Sequence[str]], Awaitable[list[Ids]]]


class EngineTokenizer:
    """A tokenizer.Tokenizer that calls the engine's tokenizer, with retries (see retry.py)."""

    def __init__(self, frame: Frame, encode: Ask, ends: Ask) -> None:
        self.frame = frame
        self._encode = encode
        self._ends = ends

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        return await self._encode(texts)

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return await self._ends(texts)


class ModelVocabulary:
    """The vocabulary in a model's files. It is read on first use and kept until it is dropped."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self._metadata = metadata
        self._task: asyncio.Task[None] | None = None
        # Not the result of the task: that would live until Python's cyclic garbage collection.
        self._found: list[OwnTokenizer] = []

    def begin(self) -> None:
        """Start to read the vocabulary in a thread."""
        if self._task is None or (self._task.done() and self._task.exception() is not None):
            self._task = asyncio.create_task(asyncio.to_thread(self._read, self._found))

    async def tokenizer(self) -> OwnTokenizer:
        """The tokenizer. Raises ModelFileError if the vocabulary can't be read."""
        self.begin()
        task, found = self._task, self._found
        assert task is not None
        await asyncio.shield(task)
        return found[0] if found else await self.tokenizer()  # it was dropped meanwhile

    async def drop(self) -> None:
        """Free the vocabulary. One with 250,000 pieces takes 280 MiB."""
        self._task = None
        self._found.clear()  # for other holders of the list
        self._found = []  # a read in progress fills the old list
        await asyncio.to_thread(processes.give_back)

    def _read(self, found: list[OwnTokenizer]) -> None:
        from rerankd.formats import tokenizer  # its library takes a while to import

        found.append(OwnTokenizer(tokenizer.read(self._metadata)))
        processes.give_back()  # reading the file took another 20 to 70 MiB


def reader(running: Offer, tokenizer: Tokenizer) -> Reader:
    """The Reader for a model that runs as in this offer."""
    spec, reads_text = running.spec, running.capabilities.reads == "text"
    return blocks.reader(spec.recipe, tokenizer, spec.control_tokens, reads_text=reads_text)
