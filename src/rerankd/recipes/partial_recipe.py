"""(pure) What each source says of a recipe, and the merge of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from rerankd.domain import Method, NormalizationName, Pooling, Source


@dataclass(frozen=True, slots=True)
class PartialRecipe:
    """The parts of a recipe that one source knows (see domain.Recipe); None: nothing.

    `low` and `high` bound the affine normalization. `pooling` of a user's settings is also what a
    ModernBERT's head reads, where the file does not say.
    """

    method: Method | None = None
    max_length: int | None = None
    template: str | None = None
    labels: tuple[str, str] | None = None
    pooling: Pooling | None = None
    normalization: NormalizationName | None = None
    low: float | None = None
    high: float | None = None
    instruction: str | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None


NOTHING = PartialRecipe()
# How an embedding model's states may be pooled.
POOLINGS = ("mean", "cls", "last")


def merge(partials: Mapping[Source, PartialRecipe]) -> tuple[PartialRecipe, dict[str, Source]]:
    """All that the sources say together, and where each part is from. The first source in the mapping's order
    wins; of lengths that the user does not set, the smallest does."""
    values: dict[str, object] = {}
    sources: dict[str, Source] = {}
    for part in (field.name for field in fields(PartialRecipe)):
        said = {
            source: value for source, one in partials.items() if (value := getattr(one, part)) is not None
        }
        if said:
            is_bound = part == "max_length" and "settings" not in said
            sources[part] = min(said, key=said.__getitem__) if is_bound else next(iter(said))
            values[part] = said[sources[part]]
    return PartialRecipe(**values), sources  # type: ignore[arg-type]
