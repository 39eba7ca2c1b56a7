"""The client of one llama.cpp server: HTTP on a UNIX socket."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rerankd.backends.llama.launch import TOKENIZING
from rerankd.errors import EngineError, EngineUnavailable, InputTooLong
from rerankd.process.protocol import EngineClient

# llama.cpp's error messages for a text longer than its micro-batch, its context, or a slot's context.
_TOO_LONG = ("too large to process", "larger than the max context size", "exceeds the available context size")
# Characters per tokenize call. Larger requests are split, so that other calls run in between.
_PART_CHARACTERS = 2**20


class LlamaClient(EngineClient):
    """The client of one llama.cpp server. Raises only EngineError.

    The number of concurrent tokenize calls is limited, because each occupies one of llama.cpp's few HTTP
    threads.
    """

    def __init__(self, socket: Path) -> None:
        super().__init__(socket)
        self._tokenizing = asyncio.Semaphore(TOKENIZING)
        self._answered = 0

    async def shows_work(self, within_s: float) -> bool:
        """Whether the server's compute loop makes progress within `within_s` seconds.

        `/slots` is answered by the compute loop, between two steps; `/health` is not.
        """
        answered = self._answered
        try:
            await self.get("/slots", within_s)
        except TimeoutError:
            return self._answered != answered
        except OSError:
            pass  # it is exiting, which the supervisor detects
        return True

    async def compute(self, path: str, body: dict[str, Any]) -> Any:
        """POST a call that runs the model."""
        answer = await self.post(path, body)
        self._answered += 1
        return answer

    async def tokenize(self, text: str, *, special: bool = False) -> list[int]:
        """Return the token ids of `text` as plain text. `special` adds the vocabulary's special tokens."""
        with in_shape():
            return [int(one) for one in await self._tokens(text, add_special=special)]

    async def tokenize_all(self, texts: Sequence[str], separator: int | None) -> list[list[int]]:
        """Return the token ids of each text. `separator` is an id that plain text never produces; with it,
        many texts share a call."""
        return [[int(one) for one in tokens] for tokens in await self._each(texts, separator)]

    async def pieces_of(self, texts: Sequence[str], separator: int | None) -> list[list[bytes]]:
        """Return the bytes of each token of each text; `separator` as in `tokenize_all`."""
        found = await self._each(texts, separator, with_pieces=True)
        with in_shape():
            return [[_bytes(token["piece"]) for token in tokens] for tokens in found]

    async def _each(self, texts: Sequence[str], separator: int | None, **how: bool) -> list[list[Any]]:
        """Return the tokens of each text, in the form of `_tokens`."""
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
            raise EngineError(
                f"The engine tokenized {len(found)} of {len(texts)} texts. See the engine's log."
            )
        return found

    async def _tokens(self, content: str | list[str | int], **how: bool) -> list[Any]:
        """Return the tokens of a text, or of a list of texts and token ids. Each token is an id, or with
        `with_pieces` an object with id and piece."""
        body = {"content": content, "add_special": False, "parse_special": False, **how}
        async with self._tokenizing:
            answer = await self.post("/tokenize", body)
        with in_shape():
            return [*answer["tokens"]]

    def _error(self, status: int, message: str) -> EngineError:
        if status == 503:
            return EngineUnavailable("The engine is still loading its model. Try again in a moment.")
        if any(sign in message for sign in _TOO_LONG):
            return InputTooLong(f"The engine rejected the request: {message}")
        return super()._error(status, message)


@contextlib.contextmanager
def in_shape() -> Iterator[None]:
    """Translate exceptions from reading a malformed response into EngineError."""
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise EngineError(
            f"The engine's response has an unexpected form ({error!r}). Use a recent llama-server. See the "
            "engine's log."
        ) from error


def _split(tokens: Sequence[Any], separator: int) -> list[list[Any]]:
    """Split a list of tokens at the separators."""
    found: list[list[Any]] = [[]]
    with in_shape():
        for token in tokens:
            if (token["id"] if isinstance(token, dict) else token) == separator:
                found.append([])
            else:
                found[-1].append(token)
    return found[:-1]


def _bytes(piece: str | list[int]) -> bytes:
    """Return a piece as bytes. llama.cpp sends a list of bytes for a piece that is not valid text."""
    return piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else bytes(piece)
