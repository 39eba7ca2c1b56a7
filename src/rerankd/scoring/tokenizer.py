"""The interface of a tokenizer. It does not import numpy, because the settings import the backends'
interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rerankd.scoring.engine_input import Frame, Ids


class Tokenizer(Protocol):
    """A model's tokenizer, in this process or in the engine. It never turns text into a control token."""

    frame: Frame

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The token ids of each text, without special tokens."""

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        """For each text, the position (in characters) at which each of its tokens ends. Tokens that are parts
        of one character end at the same position."""
