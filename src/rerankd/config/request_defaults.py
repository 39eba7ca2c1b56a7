"""Request defaults: time budget, and truncation of texts that are too long."""

from __future__ import annotations

from typing import ClassVar

from rerankd.backends.options import Needs, Options, per_model
from rerankd.domain import TruncateAt


class RequestDefaults(Options):
    """Defaults for the options that a request omits. A model may override them."""

    needs: ClassVar[Needs] = "live"

    budget_ms: int | None = per_model(
        None,
        ge=0,
        le=86_400_000,
        description="milliseconds after which a request is answered with the documents scored so far; the "
        "others are ranked last and listed as unscored; 0 or not set: no time budget",
    )
    truncate_query: bool = per_model(
        False,
        description="truncate a query that is too long and return a warning instead of rejecting the request",
    )
    truncate_at: TruncateAt = per_model(
        "token",
        description="where a truncated text ends: token: at the last token that fits; sentence: at the last "
        "end of a sentence, if one is close to that token",
    )
