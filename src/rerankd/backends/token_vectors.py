"""What an engine needs to score by late interaction, and what it keeps of documents between calls.

The values are passed to a worker program as one argument. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rerankd.domain import Recipe
    from rerankd.formats.metadata import ModelMetadata

VECTOR_SPARES_S = 0.005
"""Seconds of computation that the vectors of a document on disk spare, at least on a CPU."""
_VECTOR_FILE = "RERANKD_ENGINE_VECTOR_FILE"


@dataclass(frozen=True, slots=True)
class TokenVectors:
    """An interaction.Interaction with token ids. `skiplist`: tokens of documents that are not compared.
    `most_bytes`: the memory for the vectors of documents; 0 keeps none."""

    expansion_length: int = 0
    expansion_id: int = 0
    attends_to_expansion: bool = False
    skiplist: tuple[int, ...] = ()
    most_bytes: int = 0

    @classmethod
    def of(cls, recipe: Recipe, metadata: ModelMetadata | None, most_bytes: int) -> TokenVectors | None:
        """Those of a model; None if it is scored by another method."""
        interaction = recipe.interaction
        if interaction is None or metadata is None:
            return None
        filled = metadata.token_id(interaction.expansion_token) if interaction.expansion_length else 0
        return cls(
            interaction.expansion_length,
            filled or 0,
            interaction.attends_to_expansion,
            metadata.token_ids(interaction.skiplist),
            most_bytes,
        )

    @classmethod
    def parse(cls, argument: str) -> TokenVectors:
        values = json.loads(argument)
        return cls(**values | {"skiplist": tuple(values["skiplist"])})

    @property
    def arguments(self) -> tuple[str, str]:
        """The arguments of a worker program."""
        return "--token-vectors", json.dumps(asdict(self))


@dataclass(frozen=True, slots=True)
class VectorFile:
    """Where an engine keeps the vectors of documents on disk (see disk_cache.py). `identity` stands for
    everything that they depend on besides the token ids."""

    path: str
    most_bytes: int
    ttl_s: float
    identity: str = ""

    @property
    def environment(self) -> dict[str, str]:
        """The environment variable of a worker program."""
        return {_VECTOR_FILE: json.dumps(asdict(self))}

    @classmethod
    def of_environment(cls, environment: Mapping[str, str]) -> VectorFile | None:
        """The file of this worker program; None if it keeps no vectors on disk."""
        argument = environment.get(_VECTOR_FILE)
        return cls(**json.loads(argument)) if argument else None


def longest(recipe: Recipe) -> int:
    """The most tokens of an input of the engine: a document, or a query where that is read apart."""
    interaction = recipe.interaction
    return max(recipe.max_length, interaction.query_length if interaction is not None else 0)


@dataclass(frozen=True, slots=True)
class KeptVectors:
    """The document vectors that an engine keeps: their number and memory, and how many documents had vectors
    that were kept (`hits`) or not since the engine started; `disk_hits` of these hits came from disk. A chunk
    of a document counts as one."""

    documents: int = 0
    size_bytes: int = 0
    hits: int = 0
    misses: int = 0
    disk_hits: int = 0

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> KeptVectors:
        return cls(**{name: int(values[name]) for name in cls.__dataclass_fields__})

    @classmethod
    def sum(cls, every: Sequence[KeptVectors]) -> KeptVectors:
        """Those of several engines."""
        return cls(**{name: sum(getattr(one, name) for one in every) for name in cls.__dataclass_fields__})
