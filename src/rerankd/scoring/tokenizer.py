"""What a tokenizer is to the rest of the house. No numpy here: the settings load the contract of backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rerankd.scoring.engine_input import Frame, Ids


class Tokenizer(Protocol):
    """A model's tokenizer, wherever it runs. A text never becomes a control token."""

    frame: Frame

    async def encode(self, texts: Sequence[str]) -> list[Ids]:
        """The ids of each text, without any around it."""

    async def ends(self, texts: Sequence[str]) -> list[Ids]:
        """For each text, the place in it (in characters) where each of its tokens ends. Tokens that are parts
        of one character end at the same place."""
