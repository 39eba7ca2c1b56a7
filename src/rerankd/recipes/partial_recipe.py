"""(pure) Partial recipes, one from each source, and their merge into one recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from rerankd.domain import Method, Pooling, Source
from rerankd.normalization import NormalizationName


@dataclass(frozen=True, slots=True)
class PartialRecipe:
    """The parts of a recipe that one source defines (see domain.Recipe, and interaction.Interaction for the
    last ones); None for the others.

    `low` and `high` are the bounds of the affine normalization, `logit_mean` and `logit_sigma` the parameters
    of the sigmoid. In a user's settings, `pooling` is also the pooling that a ModernBERT's head reads, for
    files that do not declare it. `image_tokens` are the fewest and the most blocks of an image.
    """

    method: Method | None = None
    max_length: int | None = None
    template: str | None = None
    labels: tuple[str, ...] | None = None
    pooling: Pooling | None = None
    normalization: NormalizationName | None = None
    low: float | None = None
    high: float | None = None
    logit_mean: float | None = None
    logit_sigma: float | None = None
    instruction: str | None = None
    query_prefix: str | None = None
    document_prefix: str | None = None
    query_marker: str | None = None
    document_marker: str | None = None
    query_length: int | None = None
    expansion_length: int | None = None
    expansion_token: str | None = None
    attends_to_expansion: bool | None = None
    skiplist: tuple[str, ...] | None = None
    image_tokens: tuple[int, int] | None = None


NOTHING = PartialRecipe()
# The poolings of embedding models.
POOLINGS = ("mean", "cls", "last")


def merge(partials: Mapping[Source, PartialRecipe]) -> tuple[PartialRecipe, dict[str, Source]]:
    """The merged partial recipes, and the source of each part.

    The first source in the mapping's order wins. Exception: unless the user sets max_length, the smallest
    one wins.
    """
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
