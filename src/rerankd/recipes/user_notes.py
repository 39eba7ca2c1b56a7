"""(pure) What a user should know of a recipe: notes where it is shown, warnings with every answer."""

from __future__ import annotations

from rerankd.domain import Recipe
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.catalog import Entry
from rerankd.recipes.prompts import Prompt
from rerankd.recipes.recipe_sources import longest


def warnings(recipe: Recipe, entry: Entry | None, prompt: Prompt | None) -> tuple[str, ...]:
    """What is assumed and nothing states, for every answer."""
    if recipe.method == "causal_lm" and prompt is not None and prompt.assumed and _is_asked_so(recipe):
        return (f"{prompt.note[0].upper()}{prompt.note[1:]}.",)
    if recipe.method == "embedding" and entry is None and "query_prefix" not in recipe.sources:
        return (
            "This embedding model is not in the catalog, and its file does not say whether queries and "
            'documents want a prefix; none is put before them. Set query_prefix and document_prefix ("" for '
            "none).",
        )
    return ()


def notes(
    recipe: Recipe, metadata: ModelMetadata, entry: Entry | None, prompt: Prompt | None
) -> tuple[str, ...]:
    """What explains a recipe, or could be set better."""
    found = []
    if recipe.method == "causal_lm":
        if prompt is not None and prompt.note and _is_asked_so(recipe):
            found.append(prompt.note)
        if metadata.has_cls or metadata.has_cls_output:
            found.append("its rank head is not used: its labels' logits give the same score, faster")
    if recipe.method == "embedding" and entry is None:
        found.append(
            "not in the catalog: set query_prefix and document_prefix if its model card names any, and low "
            "and high to the cosines of an unrelated and of a perfect pair"
        )
    if recipe.pooling == "last" and metadata.add_eos is not True:
        found.append(
            "its header does not tell the tokenizer to end texts with the end token that last pooling reads: "
            "scores are worse than the model's own; use a newer conversion"
        )
    most = longest(metadata, entry)
    if recipe.sources["max_length"] != "settings" and recipe.max_length < most:
        found.append(
            f"max_length {recipe.max_length} of the {most} tokens it can read; set max_length for more"
        )
    return tuple(found)


def _is_asked_so(recipe: Recipe) -> bool:
    """Whether the prompt is the known one, and not the user's."""
    return recipe.sources["template"] != "settings"
