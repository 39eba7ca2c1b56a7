"""The client of one llama.cpp child: its HTTP, on a UNIX socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rerankd.backends.llama.launch import TOKENIZING
from rerankd.errors import EngineError, EngineUnavailable, InputTooLong
from rerankd.process.protocol import EngineClient

# How llama.cpp says that a text is longer than its micro-batch, its context or a slot of it.
_TOO_LONG = ("too large to process", "larger than the max context size", "exceeds the available context size")
# What one call tokenizes, in characters, so that other calls have their turn between two.
_PART_CHARACTERS = 2**20


class LlamaClient(EngineClient):
    """One llama.cpp server's HTTP. Raises EngineError only.

    Calls that tokenize wait for places of their own, since llama.cpp keeps one of its few HTTP threads for
    each.
    """

    def __init__(self, socket: Path) -> None:
        super().__init__(socket)
        self._tokenizing = asyncio.Semaphore(TOKENIZING)
        self._answered = 0

    async def shows_work(self, within_s: float) -> bool:
        """Whether the server's own loop makes progress within `within_s`.

        `/slots` is answered by the loop that computes, between two of its steps, and `/health` is not.
        """
        answered = self._answered
        try:
            await self.get("/slots", within_s)
        except TimeoutError:
            return self._answered != answered
        except OSError:
            pass  # it is dying, which is seen elsewhere
        return True

    async def compute(self, path: str, body: dict[str, Any]) -> Any:
        """POST one call that runs the model."""
        answer = await self.post(path, body)
        self._answered += 1
        return answer

    async def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """The ids of `text` as plain text; with `special`, the tokens the vocabulary puts around it too."""
        with in_shape():
            return [int(one) for one in await self._tokens(text, add_special=special)]

    async def tokenize_all(self, texts: Sequence[str], separator: int | None) -> list[list[int]]:
        """The ids of each text, in few calls where `separator` is an id that plain text never becomes."""
        return [[int(one) for one in tokens] for tokens in await self._each(texts, separator)]

    async def pieces_of(self, texts: Sequence[str], separator: int | None) -> list[list[bytes]]:
        """The bytes that each token of each text stands for; `separator` as above."""
        found = await self._each(texts, separator, with_pieces=True)
        with in_shape():
            return [[_bytes(token["piece"]) for token in tokens] for tokens in found]

    async def _each(self, texts: Sequence[str], separator: int | None, **how: bool) -> list[list[Any]]:
        """The tokens of each text, as `_tokens` has them."""
        if separator is None:
            return await asyncio.gather(*(self._tokens(text, **how) for text in texts))
        found: list[list[Any]] = []
        part: list[str | int] = []
        characters = 0
        for at, text in enumerate(texts):
            part += (text, separator)
            characters += len(text)
            if characters >= _PART_CHARACTERS or at == len(texts) - 1:
                found += _split(await self._tokens(part, **how), separator)
                part, characters = [], 0
        if len(found) != len(texts):
            raise EngineError(f"The engine tokenized {len(found)} texts of {len(texts)}; see its log.")
        return found

    async def _tokens(self, content: str | list[str | int], **how: bool) -> list[Any]:
        """The tokens of a text, or of a list in which ids stay as they are. Each is an id, or with
        `with_pieces` an object with id and piece."""
        body = {"content": content, "add_special": False, "parse_special": False, **how}
        async with self._tokenizing:
            answer = await self.post("/tokenize", body)
        with in_shape():
            return [*answer["tokens"]]

    def _error(self, status: int, said: str) -> EngineError:
        if status == 503:
            return EngineUnavailable("The engine is still loading its model; try again in a moment.")
        if any(sign in said for sign in _TOO_LONG):
            return InputTooLong(f"The engine refused the request: {said}")
        return super()._error(status, said)


@contextlib.contextmanager
def in_shape() -> Iterator[None]:
    """What reading an answer raises where it is not what a llama-server sends is an EngineError."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"The engine's answer can't be read ({error!r}); is it a llama-server of this time? See its log."
        ) from error


def _split(tokens: Sequence[Any], separator: int) -> list[list[Any]]:
    """The tokens before each separator."""
    found: list[list[Any]] = [[]]
    with in_shape():
        for token in tokens:
            if (token["id"] if isinstance(token, dict) else token) == separator:
                found.append([])
            else:
                found[-1].append(token)
    return found[:-1]


def _bytes(piece: str | list[int]) -> bytes:
    """A piece is a text, or its bytes where they are none."""
    return piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else bytes(piece)
