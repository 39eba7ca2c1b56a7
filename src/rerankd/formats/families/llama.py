"""Llama: causal models, and llama-nemotron-rerank, which reads a prompt in both directions.

Sources: LlamaForCausalLM of transformers 5; LlamaBidirectionalForSequenceClassification in the repository
nvidia/llama-nemotron-rerank-1b-v2, whose score is the product of a row and the mean of all states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rerankd.formats.families import qwen
from rerankd.formats.families.family import Config, Family, differs

_POOLINGS = {"avg": 1, "mean": 1, "last": 3}
_SCALING = {
    "factor": "rope.scaling.factor",
    "low_freq_factor": "rope.scaling.low_freq_factor",
    "high_freq_factor": "rope.scaling.high_freq_factor",
    "original_max_position_embeddings": "rope.scaling.original_context_length",
}


def llama(config: Mapping[str, Any]) -> Family:
    """LlamaForCausalLM with this config.json."""
    family = qwen.family("llama", config, qwen.LAYER, biased=())
    return replace(family, keys=_keys, unsupported=_unsupported)


def bidirectional(config: Mapping[str, Any]) -> Family:
    """LlamaBidirectionalForSequenceClassification with this config.json."""
    family = qwen.family("llama-embed", {"tie_word_embeddings": True}, qwen.LAYER, biased=())
    tensors = {**family.tensors, "cls.output": "score"}
    return replace(family, tensors=tensors, keys=_bidirectional_keys, unsupported=_bidirectional_unsupported)


def _keys(config: Config) -> dict[str, Any]:
    rope = _rope(config.values)
    found = qwen.keys(config)
    if rope.get("rope_type") == "llama3":
        found["rope.scaling.type"] = "llama3"
        found |= {ours: config.real(own, 1.0, rope.get(own)) for own, ours in _SCALING.items()}
    return found


def _bidirectional_keys(config: Config) -> dict[str, Any]:
    pooled = _POOLINGS.get(str(config.values.get("pooling")), 1)
    more = {"attention.causal": False, "pooling_type": 4, "classifier.pooling_type": pooled}
    return {**_keys(config), **more}


def _rope(config: Mapping[str, Any]) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        found |= rope if isinstance(rope, Mapping) else {}
    return {**found, "rope_type": found.get("rope_type", found.get("type", "default"))}


def _unsupported(config: Mapping[str, Any]) -> str:
    rope = _rope(config)
    if rope["rope_type"] not in ("default", "llama3"):
        return f"its rotary positions are scaled: {dict(rope)!r:.100}"
    if rope["rope_type"] == "llama3" and any(rope.get(own) is None for own in _SCALING):
        return f"its rotary positions are not completely declared: {dict(rope)!r:.100}"
    return differs(
        config, {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1}
    )


def _bidirectional_unsupported(config: Mapping[str, Any]) -> str:
    if config.get("pooling") not in _POOLINGS:
        return f"its pooling is {config['pooling']!r}, not 'avg'"
    return _unsupported(config) or differs(config, {"temperature": 1.0})
