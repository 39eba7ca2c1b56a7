"""Who tokenizes for a model: the service itself, by the vocabulary in the model's files, or its engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from rerankd import processes
from rerankd.backends.base import Offer
from rerankd.formats.metadata import ModelMetadata
from rerankd.ids import Frame, Ids
from rerankd.scoring.inputs import Reader
from rerankd.scoring.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rerankd.formats.tokenizer import Vocabulary

# A text of as many characters is tokenized in less time than another thread takes to hear of it.
_AT_ONCE_CHARACTERS = 2_000
# What one thread does at a time; between two parts other requests' texts have their turn.
_PART_CHARACTERS = 2**18
# `tokenizers` has threads of its own; these only wait for it, without holding up the event loop.
_THREADS = ThreadPoolExecutor(2, "tokenize")


class OwnTokenizer:
    """The vocabulary of the model's files: a tokenizer.Tokenizer that works in threads of this process."""

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
    """The engine's own: a tokenizer.Tokenizer that asks it, with the care of other calls (see retry.py)."""

    def __init__(self, frame: Frame, encode: Ask, ends: Ask) -> None:
        self.frame = frame
        self._encode = encode
        self._ends = ends

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        return await self._encode(texts)

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        return await self._ends(texts)


class ModelVocabulary:
    """The vocabulary in one model's files, read when it is first asked for and kept until it is dropped."""

    def __init__(self, metadata: ModelMetadata) -> None:
        self._metadata = metadata
        self._task: asyncio.Task[None] | None = None
        # No result of the task: such a result lives until Python collects what refers to itself.
        self._found: list[OwnTokenizer] = []

    def begin(self) -> None:
        """Have it read, in a thread of its own."""
        if self._task is None or (self._task.done() and self._task.exception() is not None):
            self._task = asyncio.create_task(asyncio.to_thread(self._read, self._found))

    async def tokenizer(self) -> OwnTokenizer:
        """Raises ModelFileError where it can't be read."""
        self.begin()
        task, found = self._task, self._found
        assert task is not None
        await asyncio.shield(task)
        return found[0] if found else await self.tokenizer()  # it was dropped at this moment

    async def drop(self) -> None:
        """Forget it. One of 250,000 pieces has 280 MiB."""
        self._task = None
        self._found.clear()  # whoever else holds the list
        self._found = []  # one that is still being read is not kept
        await asyncio.to_thread(processes.give_back)

    def _read(self, found: list[OwnTokenizer]) -> None:
        from rerankd.formats import tokenizer  # its library takes a while to import

        found.append(OwnTokenizer(tokenizer.read(self._metadata)))
        processes.give_back()  # what reading a file takes besides: 20 to 70 MiB


def reader(running: Offer, tokenizer: Tokenizer) -> Reader:
    """How a model that runs so reads texts."""
    spec, reads_text = running.spec, running.capabilities.reads == "text"
    return Reader(spec.recipe, tokenizer, spec.control_tokens, reads_text=reads_text)
