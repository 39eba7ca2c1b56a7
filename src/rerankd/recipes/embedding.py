"""(pure) What the recipe of an embedding model needs: its pooling."""

from __future__ import annotations

from collections.abc import Mapping

from rerankd.domain import Refusal, Source
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.catalog import Entry
from rerankd.recipes.partial_recipe import POOLINGS, PartialRecipe
from rerankd.recipes.scoring_method import KNOWN_GOOD
from rerankd.toml_values import toml


def missing(
    metadata: ModelMetadata, entry: Entry | None, merged: PartialRecipe, sources: Mapping[str, Source]
) -> Refusal | None:
    """The refusal of a model whose pooling is not known, or declared differently by catalog and file."""
    declared, pooling = metadata.pooling, merged.pooling
    if pooling not in POOLINGS:
        return Refusal(
            "an embedding model needs a pooling, and neither the file nor the catalog defines it",
            f"set pooling in rerankd.toml to mean, cls or last, as its model card states, or {KNOWN_GOOD}",
        )
    if entry is None or sources["pooling"] != "catalog":
        return None
    if declared in POOLINGS and declared != pooling:
        return Refusal(
            f"its header names it {entry.name}, whose pooling is {pooling}, but declares the pooling "
            f"{declared}",
            "set pooling in rerankd.toml to the one that its model card states",
            f'method = "embedding"\npooling = {toml(declared)}  # or {toml(pooling)}',
        )
    return None
