"""Checkpoints of rerankers that read images: Qwen3-VL-Reranker's class, and that of jina-reranker-m0.

transformers computes them, in the PyTorch backend alone; the code in jina-reranker-m0's own files is not
needed. Its class adds two layers to Qwen2-VL (score.0 and score.2) that read the state of the token that its
code calls score_token_id.

Sources: Qwen3VLForConditionalGeneration and Qwen2VLModel of transformers 5; modeling.py of
jinaai/jina-reranker-m0 (JinaVLForRanking).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rerankd.formats import image_processor
from rerankd.formats.checkpoint_files import PREPROCESSOR, PROCESSOR
from rerankd.formats.gguf_header import Tensor
from rerankd.formats.image_processor import ImageProcessor

QWEN3_VL, JINA_VL = "qwen3vl", "jina-vl"
CLASSES = {"Qwen3VLForConditionalGeneration": QWEN3_VL, "JinaVLForRanking": JINA_VL}
"""The classes, and the architectures that they have here."""
SCORE_TOKEN = "<|score_token|>"
"""The name of the score token in a template; the vocabulary has only its id."""
_SCORE_TOKEN_ID = 100
_SIZES = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
}
# Tensors that a recipe refers to, by the ends of their names.
_NAMES = {
    "embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "score.2.weight": "cls.output.weight",
}


def header(
    kind: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The keys and tensors under GGUF's names, None if config.json lacks a size. The sizes of the text model
    are in an object of their own, or beside the others in older files."""
    architecture = CLASSES[kind]
    text = config.get("text_config")
    text = text if isinstance(text, Mapping) else config
    values: dict[str, Any] = {"general.architecture": architecture}
    for ours, own in _SIZES.items():
        size = text.get(own)
        if type(size) is int and 0 < size < 2**31:
            values[f"{architecture}.{ours}"] = size
        elif own in ("hidden_size", "num_hidden_layers", "max_position_embeddings"):
            return None
    values |= {f"{architecture}.attention.causal": True, f"{architecture}.pooling_type": 0}
    if architecture == JINA_VL:
        values[f"{architecture}.score_token"] = _SCORE_TOKEN_ID
    named = {}
    for own, tensor in tensors.items():
        found = next((ours for end, ours in _NAMES.items() if own.endswith(end)), own)
        if not (architecture == JINA_VL and found == "output.weight"):
            named[found] = tensor
    return values, named


def processor(load: Callable[[str], Any]) -> ImageProcessor | None:
    """The image processor that the files declare; None if it is missing, or if rerankd does not support it:
    the model then reads text alone."""
    said = load(PREPROCESSOR) or load(PROCESSOR)
    found = image_processor.read(said) if isinstance(said, Mapping) else ""
    return found if isinstance(found, ImageProcessor) else None
