"""(pure) Whether a causal model has what its recipe needs: output matrix, labels, special tokens."""

from __future__ import annotations

import re

from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.scoring_method import QWEN3

_MARKER = re.compile(r"<\|\w+\|>|<bos>")


def lost_output(metadata: ModelMetadata) -> bool:
    """Whether the output matrix, which predicts the next token, is missing.

    Up to 4B, Qwen3 shares it with the embedding matrix. From 8B on (embedding length 4,096) it is a separate
    tensor; if that is missing, llama.cpp silently uses the embedding matrix, and the logits are noise.
    """
    return metadata.architecture in QWEN3 and metadata.embedding_length >= 4096 and not metadata.has_output


def unfit_vocabulary(metadata: ModelMetadata, template: str, labels: tuple[str, ...]) -> str:
    """What the vocabulary lacks for the labels and for the template's special tokens; "" if it has all."""
    if len(set(labels)) < len(labels) or not all(labels):
        return f"the labels {' and '.join(map(repr, labels))} are not different texts"
    for label in labels:
        if metadata.token_id(label) is None:
            return f"the label {label!r} is not a single token of the vocabulary"
    for marker in _MARKER.findall(template):
        if marker not in metadata.control_tokens and marker not in metadata.user_defined_tokens:
            return f"{marker} is not a special token of the vocabulary"
    return ""
