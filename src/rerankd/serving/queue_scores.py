"""(pure) The scores that pass through the queue: those of a batch, and those of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rerankd.errors import RerankdError
from rerankd.scoring.block_scores import Block


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of a batch: the raw score of each input, or the vector of an input without a query, by its
    index in the batch. A score is None if `errors` holds a reason, if `failures` holds the error of its
    request, if no client waits for it, or if another input of its block has an error. `block` has the vectors
    of a block."""

    values: Sequence[Any]
    errors: Mapping[int, str] = field(default_factory=dict)
    failures: Mapping[int, RerankdError] = field(default_factory=dict)
    block: Block | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """The raw scores of a request's inputs, or their vectors, by their index in the request. A score is None
    if `errors` holds a reason, for an input whose block contains one, and for the inputs in `unscored`, which
    did not fit into the time budget. `blocks` has the vectors of each scored block, by the index of its first
    input."""

    values: Sequence[Any]
    errors: Mapping[int, str]
    unscored: frozenset[int]
    blocks: Mapping[int, Block] = field(default_factory=dict)
