"""(pure) Which models can be tuned: cross-encoders from safetensors, and encoders that become one."""

from __future__ import annotations

import re

from rerankd.domain import Recipe, Refusal
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.resolution import Resolution

_AS_TEACHER = "use it as --teacher, and a small cross-encoder from safetensors as --base"
# Encoders whose class with a head is served.
_HEADLESS = re.compile(
    "(Bert|Camembert|DebertaV2|DistilBert|Electra|ModernBert|Roberta|XLMRoberta)(Model|ForMaskedLM)"
)
_METHODS = {
    "causal_lm": "it is a causal model, which scores by a prompt; only cross-encoders are tuned",
    "late_interaction": "it is a late-interaction model, which has no score for a pair; only cross-encoders "
    "are tuned",
    "listwise": "it is a listwise model, which scores a block of documents; only cross-encoders are tuned",
}


def refusal(metadata: ModelMetadata, resolved: Resolution) -> Refusal | None:
    """Why a model can't be tuned, None if it can."""
    if metadata.format == "gguf":
        return Refusal(
            "it is a GGUF file, which no trainer reads or writes, since its weights may be quantised",
            "name the folder or the repository of the model in safetensors",
        )
    recipe = resolved.recipe
    if recipe is None:
        if is_headless(metadata):
            return None
        return Refusal(_METHODS["causal_lm"], _AS_TEACHER) if metadata.is_causal else resolved.refusal
    if reason := _obstacle(metadata, recipe):
        return Refusal(reason, _AS_TEACHER)
    return None


def _obstacle(metadata: ModelMetadata, recipe: Recipe) -> str:
    if recipe.method in _METHODS:
        return _METHODS[recipe.method]
    if recipe.images is not None:
        return "it reads images; only cross-encoders for text are tuned"
    if metadata.library == "own code":
        return "it runs code in its own files, which can't be saved with the result"
    if metadata.is_causal and not metadata.library:
        return "its body is a causal model; only encoders are tuned"
    if recipe.template:
        return "its input is a prompt; only cross-encoders that read a pair are tuned"
    if metadata.cls_output_rows > 1 or (metadata.cls_rows > 1 and not metadata.has_cls_output):
        return "its head has several labels, but the loss is for one score"
    return ""


def is_headless(metadata: ModelMetadata) -> bool:
    """Whether the model is an encoder without a head for a score, as in embedding models. It is not served,
    but can be tuned: it gets a new head."""
    return metadata.format == "safetensors" and _HEADLESS.fullmatch(metadata.class_name) is not None
