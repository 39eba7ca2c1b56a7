"""(pure) Which models the worker programs with graphs of their own can run: OpenVINO's and ONNX Runtime's."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from rerankd.domain import Recipe
from rerankd.formats import tokenizer_support

if TYPE_CHECKING:
    from rerankd.formats.metadata import ModelMetadata

GEMMA, LLAMA = ("gemma", "gemma2", "gemma3"), ("llama", "llama-embed")
CAUSAL = (*GEMMA, "llama", "qwen2", "qwen3")
"""The architectures of causal models that both have graphs of."""
# How rotary positions may be scaled.
_SCALINGS = dict.fromkeys(GEMMA, "linear") | dict.fromkeys(LLAMA, "llama3")


def obstacle(
    title: str,
    recipe: Recipe,
    metadata: ModelMetadata,
    *,
    encoders: Collection[str],
    poolings: Collection[str],
) -> str:
    """Return why a backend can't run a model, as a clause; "" if it can. `encoders` are the
    architectures besides CAUSAL that it has graphs of, `poolings` those that it computes."""
    backend, is_causal = f"the {title} backend", recipe.method in ("causal_lm", "listwise")
    if metadata.library:
        return f"{backend} does not support the architecture {metadata.architecture}"
    if metadata.architecture not in (CAUSAL if is_causal else encoders):
        of = "causal models of the architecture" if is_causal else "the architecture"
        return f"{backend} does not support {of} {metadata.architecture}"
    if is_causal and not metadata.is_causal:
        return f"{backend} does not support labels for models that read a prompt in both directions"
    if metadata.is_causal and not is_causal:
        return f"{backend} does not support causal models without labels or a head"
    if metadata.rope_scaling not in ("", "none", _SCALINGS.get(metadata.architecture)):
        return f"{backend} does not support rotary positions with {metadata.rope_scaling} scaling"
    if why := tokenizer_support.refusal(metadata):
        return why
    if not is_causal and recipe.pooling not in poolings:
        return f"{backend} does not support the pooling {recipe.pooling}"
    if not is_causal and metadata.classifier_pooling not in (None, *poolings):
        return f"{backend} does not support the pooling {metadata.classifier_pooling} of a head"
    if metadata.hidden_activation not in ("", "gelu"):
        return f"{backend} does not support the activation {metadata.hidden_activation}"
    if metadata.format == "gguf" and len(metadata.parts) > 1 + (metadata.head_file is not None):
        return f"{backend} does not support split GGUF files"
    return ""
