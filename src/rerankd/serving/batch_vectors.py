"""Answer a batch in which inputs need a vector, and others may need a score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rerankd.backends.base import Batch, Engine
from rerankd.errors import EngineError
from rerankd.scoring.engine_input import Input
from rerankd.serving.engine_call import Part

Outcome = tuple[Any, str | None]
"""The vector or the raw score of an input, and the reason if it has none."""


async def answer(engine: Engine, part: Sequence[Input], score: Part[Input, Outcome]) -> Sequence[Outcome]:
    """Return the vector of each input without a query, and for the others what `score` returns. Raises what
    the engine raises."""
    texts = [at for at, one in enumerate(part) if one.question.embeds]
    pairs = [at for at, one in enumerate(part) if not one.question.embeds]
    vectors = await engine.embed(Batch(tuple(part[at] for at in texts)))
    if len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise EngineError("The engine returned vectors that are missing or not finite.")
    found: dict[int, Outcome] = {at: (vector, None) for at, vector in zip(texts, vectors, strict=True)}
    if pairs:
        found |= zip(pairs, await score(engine, [part[at] for at in pairs]), strict=True)
    return [found[at] for at in range(len(part))]
