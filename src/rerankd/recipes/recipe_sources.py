"""(pure) The sources of a recipe, by precedence: settings, catalog, file, method default; a partial recipe
each."""

from __future__ import annotations

import sys
from dataclasses import replace

from rerankd.domain import Method, Source
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes import late_interaction
from rerankd.recipes.catalog import Entry
from rerankd.recipes.model_identity import has_causal_head
from rerankd.recipes.partial_recipe import NOTHING, POOLINGS, PartialRecipe
from rerankd.recipes.prompts import Prompt, labels_of

# The default max_length of causal models. The KV cache is allocated for all tokens (Qwen3-0.6B at its full
# 40,960: 4.4 GiB per slot in F16), and Qwen3-Reranker's reference implementation reads 8,192.
CAUSAL_MAX_LENGTH = 8192
_DEFAULT_MAX_LENGTH = 512


def partials(
    settings: PartialRecipe,
    entry: Entry | None,
    metadata: ModelMetadata,
    prompt: Prompt | None,
    method: Method,
) -> dict[Source, PartialRecipe]:
    """The partial recipe of each source for a model that is scored by `method`. `prompt` is a causal
    reranker's prompt, None if it is unknown."""
    known = entry.partial(method) if entry is not None else NOTHING
    if method == "causal_lm" and prompt is not None:
        known = replace(
            prompt.catalog,
            method=known.method,
            max_length=known.max_length,
            logit_mean=known.logit_mean,
            logit_sigma=known.logit_sigma,
            image_tokens=known.image_tokens,
        )
    if settings.labels not in (None, known.labels):
        # The catalog's scale is that of the logit of its own labels.
        known = replace(known, logit_mean=None, logit_sigma=None)
    # For a cross-encoder, `pooling` is the input of its head, not the engine's pooling (see rank_heads.py).
    own = replace(settings, pooling=None) if method == "cross_encoder" else settings
    return {
        "settings": own,
        "catalog": known,
        "file": _of_file(metadata, prompt, method),
        "method default": _defaults(metadata, entry, method),
    }


def longest(metadata: ModelMetadata, entry: Entry | None) -> int:
    """The most tokens that the model can read in one pass.

    An XLM-R's context_length is its number of positions less 2: the converter subtracts the offset.
    """
    return metadata.context_length or (entry.max_length if entry is not None else 0) or _DEFAULT_MAX_LENGTH


def _of_file(metadata: ModelMetadata, prompt: Prompt | None, method: Method) -> PartialRecipe:
    partial = PartialRecipe(
        method=method,
        max_length=metadata.context_length or None,
        image_tokens=metadata.image_processor.blocks if metadata.image_processor is not None else None,
    )
    if method == "cross_encoder":
        prefix = metadata.layout.prompt if metadata.layout is not None else ""
        template = metadata.rerank_template or None
        return replace(partial, template=template, query_prefix=prefix or None)
    if method == "late_interaction":
        found = late_interaction.of_file(metadata)
        return replace(found, method=method)
    if method == "embedding":
        return replace(partial, pooling=metadata.pooling if metadata.pooling in POOLINGS else None)
    in_file = prompt.file if prompt is not None else NOTHING
    return replace(
        partial,
        template=in_file.template,
        instruction=in_file.instruction,
        labels=() if has_causal_head(metadata) else in_file.labels or labels_of(metadata),
    )


def _defaults(metadata: ModelMetadata, entry: Entry | None, method: Method) -> PartialRecipe:
    most = min(longest(metadata, entry), CAUSAL_MAX_LENGTH if metadata.is_causal else sys.maxsize)
    return PartialRecipe(
        # The length of a late-interaction model's documents is never assumed.
        max_length=None if method == "late_interaction" else most,
        pooling="rank" if method == "cross_encoder" else None,
        normalization="sigmoid" if method in ("cross_encoder", "causal_lm") else "affine",
        low=-1.0 if method == "listwise" else 0.0,
        high=1.0,
    )
