"""What an engine is to the rest of the house.

An engine scores pairs and nothing else: it never sorts, normalises or cuts; it raises only EngineError; it
may be called concurrently. Its raw values depend on the pair alone, not on its neighbours in a call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from rerankd.domain import Recipe
from rerankd.process.child import Running


@dataclass(frozen=True, slots=True)
class Shape:
    """How much memory a model takes: bytes of its weights, layers, numbers a token takes in one of them, and
    numbers that its keys and values take there. 0 where the file does not say.
    """

    weights_bytes: int = 0
    layers: int = 0
    width: int = 0
    kv_width: int = 0


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """All that an engine must know of the model it runs.

    `control_tokens` maps the text of each control token of the vocabulary to its id. `exact` says that the
    weights are not quantised, so that the arithmetic around them is the largest error left.
    """

    name: str
    path: Path
    scoring: Recipe
    control_tokens: Mapping[str, int]
    exact: bool = False
    shape: Shape = Shape()


@dataclass(frozen=True, slots=True)
class RawScores:
    """Raw values, one per text in the order of the call, and the number of tokens read for them.

    A value is None where `errors` says why that text has none, as a clause: "the engine crashed on it".
    """

    values: Sequence[float | None]
    tokens: int
    errors: Mapping[int, str] = field(default_factory=dict)


class Engine(Running, Protocol):
    """One running engine. `fixed_tokens` is what special tokens, prefixes and template take of the window,
    `about` what it is in words."""

    fixed_tokens: int
    about: str

    async def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, without any special tokens around it."""

    async def score(self, query: str, texts: Sequence[str], instruction: str = "") -> RawScores:
        """The raw value of each (query, text) pair.

        Raises InputTooLong where a pair does not fit the window, else another EngineError.
        """
