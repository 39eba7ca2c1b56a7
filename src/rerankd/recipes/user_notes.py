"""(pure) Notes and warnings about a recipe: notes are shown with it, warnings are part of every response."""

from __future__ import annotations

from rerankd.domain import Recipe
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.catalog import Entry
from rerankd.recipes.prompts import Prompt
from rerankd.recipes.recipe_sources import longest


def warnings(recipe: Recipe, entry: Entry | None, prompt: Prompt | None) -> tuple[str, ...]:
    """What the recipe assumes without any source that states it."""
    if recipe.method == "causal_lm" and prompt is not None and prompt.assumed and _has_known_prompt(recipe):
        return (f"{prompt.note[0].upper()}{prompt.note[1:]}.",)
    if recipe.method == "embedding" and entry is None and "query_prefix" not in recipe.sources:
        return (
            "This embedding model is not in the catalog, and its file does not declare prefixes for "
            "queries and "
            'documents, so none are used. Set query_prefix and document_prefix ("" for no prefix).',
        )
    return ()


def notes(
    recipe: Recipe, metadata: ModelMetadata, entry: Entry | None, prompt: Prompt | None
) -> tuple[str, ...]:
    """What explains the recipe, and which settings could improve it."""
    found = []
    if recipe.method == "causal_lm":
        if prompt is not None and prompt.note and _has_known_prompt(recipe):
            found.append(prompt.note)
        if recipe.labels and (metadata.has_cls or metadata.has_cls_output):
            found.append("its rank head is not used: the logits of the labels yield the same score faster")
    if recipe.method == "embedding" and entry is None:
        found.append(
            "the model is not in the catalog: set query_prefix and document_prefix if its model card has "
            "them, and low and high to the cosines of an unrelated and of a perfect pair"
        )
    if recipe.pooling == "last" and metadata.add_eos is not True:
        found.append(
            "its header does not tell the tokenizer to append the end token, which last pooling reads: "
            "scores are worse than the model's own; use a newer conversion"
        )
    if metadata.layout is not None and metadata.layout.activation == "identity":
        found.append(
            "its publisher uses the raw value, without a sigmoid (activation_fn is Identity): request "
            "raw_scores for it; scores in [0, 1] have the same order but are not calibrated"
        )
    if recipe.method == "listwise":
        found.append(
            "a document's score depends on the other documents of its request and on their order: compare "
            "scores within a response only, and set score_threshold with care; a repeated request is "
            "answered from the cache, a single document of it is not"
        )
    most = longest(metadata, entry)
    if recipe.sources["max_length"] != "settings" and recipe.max_length < most:
        found.append(
            f"max_length is {recipe.max_length}, and the model can read {most} tokens; set max_length to "
            "use more"
        )
    return tuple(found)


def _has_known_prompt(recipe: Recipe) -> bool:
    """Whether the template is not from the user's settings."""
    return recipe.sources["template"] != "settings"
