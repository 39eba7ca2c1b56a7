"""The defaults of a request: its time budget, and how texts that are too long are truncated."""

from __future__ import annotations

from typing import ClassVar

from rerankd.backends.options import Needs, Options, per_model
from rerankd.domain import TruncateAt


class RequestDefaults(Options):
    """What a request gets that asks for nothing else. A model may have its own."""

    needs: ClassVar[Needs] = "live"

    budget_ms: int | None = per_model(
        None,
        ge=0,
        le=86_400_000,
        description="milliseconds after which a request is answered with the documents scored so far; the "
        "rest come last, named as unscored; 0 or not set: no budget",
    )
    truncate_query: bool = per_model(
        False, description="truncate a query that is too long, with a warning; otherwise it is an error"
    )
    truncate_at: TruncateAt = per_model(
        "token",
        description="where a truncated text ends: token, at the last token that fits, or sentence, at the "
        "end of a sentence where one is near",
    )
