"""DeBERTa-v3, whose class is DeBERTa-v2's. Source: DebertaV2ForSequenceClassification of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rerankd.formats.families.bert import bert_like
from rerankd.formats.families.family import Config, differs

# Of the pooler. Other classes fix the activation of their head.
_ACTIVATIONS = ("gelu", "relu", "tanh")


def _keys(config: Config) -> dict[str, Any]:
    return {
        "attention.layer_norm_epsilon": config.real("layer_norm_eps", 1e-7),
        "attention.relative_buckets_count": config.size("position_buckets", -1, least=-1),
        "attention.relative_max_distance": _longest(config.values),
        "classifier.activation": config.values.get("pooler_hidden_act", "gelu"),
    }


def _longest(config: Mapping[str, Any]) -> Any:
    """The distance from which on all distances share one embedding."""
    longest = config.get("max_relative_positions", -1)
    return longest if isinstance(longest, int) and longest > 0 else config.get("max_position_embeddings")


def _unsupported(config: Mapping[str, Any]) -> str:
    """All that DeBERTa-v3 does not have, such as DeBERTa-v2's convolution after the first layer."""
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    of_head = width // heads if isinstance(width, int) and isinstance(heads, int) and heads else 0
    equal_width = dict.fromkeys(("embedding_size", "pooler_hidden_size"), width)
    none = dict.fromkeys(("conv_kernel_size", "type_vocab_size"), 0)
    return _unsupported_distances(config) or differs(
        config,
        {"hidden_act": "gelu", "attention_head_size": of_head, **equal_width, **none},
        required={
            "relative_attention": True,
            "position_biased_input": False,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
    )


def _unsupported_distances(config: Mapping[str, Any]) -> str:
    kinds = config.get("pos_att_type")
    parts = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    if not isinstance(parts, list) or sorted(str(part).strip() for part in parts) != ["c2p", "p2c"]:
        return f"its pos_att_type is {kinds!r}, not 'p2c|c2p'"
    activation = config.get("pooler_hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        return f"its pooler_hidden_act is {activation!r}, not {' or '.join(_ACTIVATIONS)}"
    buckets, longest = config.get("position_buckets"), _longest(config)
    if isinstance(buckets, bool) or not isinstance(buckets, int) or buckets < 4:
        return f"its position_buckets is {buckets!r}; rerankd supports distances in buckets only"
    if isinstance(longest, int) and longest <= buckets // 2 + 1:
        return f"its {buckets} position_buckets are too many for {longest} positions"
    return ""


_BERT_LIKE = bert_like("deberta", {"cls": "pooler.dense", "cls.output": "classifier"}, spare_positions=False)
_TENSORS = {
    name: own for name, own in _BERT_LIKE.tensors.items() if name not in ("position_embd", "token_types")
}
DEBERTA_V2 = replace(
    _BERT_LIKE,
    architecture="deberta-v2",
    tensors={
        **_TENSORS,
        "rel_embd": "deberta.encoder.rel_embeddings",
        "rel_embd_norm": "deberta.encoder.LayerNorm",
    },
    layer_tensors={
        **_BERT_LIKE.layer_tensors,
        "attn_q": "attention.self.query_proj",
        "attn_k": "attention.self.key_proj",
        "attn_v": "attention.self.value_proj",
    },
    keys=_keys,
    unsupported=_unsupported,
    shapes=lambda config: {"rel_embd": (config.size("hidden_size"), 2 * config.size("position_buckets"))},
)
