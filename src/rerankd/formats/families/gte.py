"""mGTE (gte-multilingual-reranker). Source: NewForSequenceClassification of Alibaba-NLP/new-impl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerankd.formats.families.bert import bert_keys
from rerankd.formats.families.family import Config, Family, differs


def gte(config: Mapping[str, Any]) -> Family:
    """mGTE, with token types unless the configuration declares that it has none."""
    tensors = {
        "token_embd": "new.embeddings.word_embeddings",
        "token_embd_norm": "new.embeddings.LayerNorm",
        "cls": "new.pooler.dense",
        "cls.output": "classifier",
    }
    if config.get("type_vocab_size") != 0:
        tensors["token_types"] = "new.embeddings.token_type_embeddings"
    return Family(
        "new",
        tensors,
        "new.encoder.layer.",
        {
            "attn_qkv": "attention.qkv_proj",
            "attn_output": "attention.o_proj",
            "attn_output_norm": "attn_ln",
            "ffn_up": "mlp.up_gate_proj",
            "ffn_down": "mlp.down_proj",
            "layer_output_norm": "mlp_ln",
        },
        _keys,
        _unsupported,
        gated=True,
        unbiased=("ffn_up",),
    )


def _keys(config: Config) -> dict[str, Any]:
    scaling = config.values.get("rope_scaling")
    factor = scaling.get("factor") if isinstance(scaling, Mapping) else None
    return {
        **bert_keys(config),
        "rope.freq_base": config.real("rope_theta", 10000.0),
        "rope.scaling.factor": 1.0 if factor is None else config.real("rope_scaling.factor", 1.0, factor),
    }


def _unsupported(config: Mapping[str, Any]) -> str:
    scaling = config.get("rope_scaling")
    if config.get("rope_theta") is None:
        return "it does not declare the base of its rotary positions (rope_theta)"
    if scaling is not None:
        if not isinstance(scaling, Mapping):
            return f"its rope_scaling is {scaling!r}"
        kind, factor = scaling.get("type", scaling.get("rope_type")), scaling.get("factor")
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool) and factor >= 1
        if kind != "ntk" or not is_number or scaling.get("mixed_b") is not None:
            return f"its rope_scaling is {dict(scaling)!r}, not of the type 'ntk' with a factor"
    return differs(
        config,
        {
            "hidden_act": "gelu",
            "layer_norm_type": "layer_norm",
            "pack_qkv": True,
            "logn_attention_scale": False,
        },
        required={"position_embedding_type": "rope"},
    )
