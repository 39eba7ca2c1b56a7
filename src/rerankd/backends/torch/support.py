"""(pure) Which models the PyTorch backend computes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rerankd.domain import Pooling, Recipe, Refusal
from rerankd.formats import tokenizer_support

if TYPE_CHECKING:
    from pathlib import Path

    from rerankd.formats.metadata import ModelMetadata

ENCODERS = ("bert", "deberta-v2", "llama-embed", "modern-bert", "new")
CAUSAL = ("gemma", "gemma2", "gemma3", "llama", "qwen2", "qwen3", "qwen3vl")
ARCHITECTURES = (*ENCODERS, *CAUSAL)
"""The rows of architectures/__init__.py, which imports PyTorch."""
# Those of formats/vision_class.py, which takes long to import.
_VISION = ("qwen3vl", "jina-vl")
_COMMIT = re.compile("[0-9a-f]{40}")
_POOLINGS = {
    "cross_encoder": ("rank",),
    "embedding": ("mean", "cls", "last"),
    "late_interaction": ("none",),
    "listwise": ("none",),
}


def is_vision(metadata: ModelMetadata | None) -> bool:
    """Whether transformers computes the model's class, with its images (see vision.py)."""
    return metadata is not None and metadata.library == "transformers" and metadata.architecture in _VISION


def image_blocks(recipe: Recipe) -> tuple[int, int]:
    """The fewest and the most blocks of an image; 0 for a model that reads text alone."""
    return (recipe.images.least, recipe.images.most) if recipe.images is not None else (0, 0)


def needs_reference(recipe: Recipe, metadata: ModelMetadata) -> bool:
    """Whether the model is one for sentence-transformers, which loads a class that has no file here."""
    return bool(metadata.library)


def refused_code(recipe: Recipe, metadata: ModelMetadata | None, *, is_trusted: bool) -> Refusal | None:
    """Why code in a model's own files must not run, or None."""
    if metadata is None or metadata.library != "own code" or is_trusted:
        return None
    return Refusal(
        f"{metadata.architecture} is code in the model's own files, which runs only with trust_remote_code",
        "read that code, then set trust_remote_code = true for this model",
    )


def code_warning(path: Path) -> str:
    """What a user should know whose model runs code of its own. A folder of the hub's cache is named after
    the commit; of another folder nobody knows where it comes from."""
    commit = path.name if path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name) else ""
    pinned = f"commit {commit}" if commit else "pinned to no commit: what the folder has when it loads"
    return f"the Python code in {path} runs, because trust_remote_code is set ({pinned})"


def refused(recipe: Recipe, metadata: ModelMetadata | None) -> Refusal | None:
    """Why the backend can't run a model, or None."""
    why = _obstacle(recipe, metadata) if metadata is not None else "the metadata of its files is unknown"
    return Refusal(why, "") if why else None


def labels(recipe: Recipe, metadata: ModelMetadata) -> tuple[int, ...]:
    """The ids of the label tokens of a causal model; () for other models, and if one is not a token."""
    if recipe.method != "causal_lm":
        return ()
    found = [metadata.token_id(label) for label in recipe.labels]
    return tuple(one for one in found if one is not None) if None not in found else ()


def pooling(recipe: Recipe) -> Pooling:
    """What the worker computes from a model's states: "rank" is a rank head, also that of a causal model."""
    return "rank" if recipe.method == "causal_lm" and not recipe.labels else recipe.pooling


def _obstacle(recipe: Recipe, metadata: ModelMetadata) -> str:
    if is_vision(metadata):
        are_tokens = len(labels(recipe, metadata)) == len(recipe.labels)
        return "" if are_tokens else "a label is not a single token of the vocabulary"
    if needs_reference(recipe, metadata):
        declared = metadata.layout.label_ids if metadata.layout is not None else ()
        is_other = recipe.method == "causal_lm" and labels(recipe, metadata) != declared
        return (
            "sentence-transformers reads only the labels that the model's files declare" if is_other else ""
        )
    if metadata.architecture not in ARCHITECTURES:
        return f"the PyTorch backend does not support the architecture {metadata.architecture}"
    if why := tokenizer_support.refusal(metadata):
        return why
    if recipe.method == "causal_lm":
        if metadata.architecture not in CAUSAL:
            return f"the architecture {metadata.architecture} is not a causal model"
        are_tokens = len(labels(recipe, metadata)) == len(recipe.labels)
        return "" if are_tokens else "a label is not a single token of the vocabulary"
    if recipe.method == "listwise" and metadata.architecture not in CAUSAL:
        return f"the architecture {metadata.architecture} is not a causal model"
    if recipe.pooling not in _POOLINGS[recipe.method]:
        return f"the PyTorch backend does not support the pooling {recipe.pooling}"
    if metadata.hidden_activation not in ("", "gelu", "silu"):
        return f"the PyTorch backend does not support the activation {metadata.hidden_activation}"
    return ""
