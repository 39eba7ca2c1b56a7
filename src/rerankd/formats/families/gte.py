"""mGTE (gte-multilingual-reranker): the class of its own code, and that of transformers.

Sources: NewForSequenceClassification of Alibaba-NLP/new-impl, GteForSequenceClassification of transformers.
Both have the same tensors, with another prefix. They describe scaled rotary positions differently: the fixed
NTK scaling of the former (https://kexue.fm/archives/9706) multiplies the base by its factor and divides all
frequencies by factor^(2 / size of a head), which is a linear scaling of the latter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rerankd.formats.families.bert import bert_keys
from rerankd.formats.families.family import Config, Family, differs


def new(config: Mapping[str, Any]) -> Family:
    """The class of the model's own code."""
    return _family("new", config, _new_keys, _new_unsupported)


def gte(config: Mapping[str, Any]) -> Family:
    """The class of transformers."""
    return _family("gte", config, _gte_keys, _gte_unsupported)


def _family(
    prefix: str,
    config: Mapping[str, Any],
    keys: Callable[[Config], dict[str, Any]],
    unsupported: Callable[[Mapping[str, Any]], str],
) -> Family:
    tensors = {
        "token_embd": f"{prefix}.embeddings.word_embeddings",
        "token_embd_norm": f"{prefix}.embeddings.LayerNorm",
        "cls": f"{prefix}.pooler.dense",
        "cls.output": "classifier",
    }
    if config.get("type_vocab_size") != 0:
        tensors["token_types"] = f"{prefix}.embeddings.token_type_embeddings"
    return Family(
        "new",
        tensors,
        f"{prefix}.encoder.layer.",
        {
            "attn_qkv": "attention.qkv_proj",
            "attn_output": "attention.o_proj",
            "attn_output_norm": "attn_ln",
            "ffn_up": "mlp.up_gate_proj",
            "ffn_down": "mlp.down_proj",
            "layer_output_norm": "mlp_ln",
        },
        keys,
        unsupported,
        gated=True,
        unbiased=("ffn_up",),
    )


def _new_keys(config: Config) -> dict[str, Any]:
    scaling = config.values.get("rope_scaling")
    factor = scaling.get("factor") if isinstance(scaling, Mapping) else None
    factor = 1.0 if factor is None else config.real("rope_scaling.factor", 1.0, factor)
    size = max(config.size("hidden_size") // config.size("num_attention_heads"), 1)
    base = config.real("rope_theta", 10000.0)
    return {
        **bert_keys(config),
        "rope.freq_base": base * factor,
        "rope.scaling.factor": factor ** (2 / size),
    }


def _new_unsupported(config: Mapping[str, Any]) -> str:
    scaling = config.get("rope_scaling")
    if config.get("rope_theta") is None:
        return "it does not declare the base of its rotary positions (rope_theta)"
    if scaling is not None:
        if not isinstance(scaling, Mapping):
            return f"its rope_scaling is {scaling!r}"
        kind, factor = scaling.get("type", scaling.get("rope_type")), scaling.get("factor")
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool) and factor >= 1
        if kind != "ntk" or not is_number or scaling.get("mixed_b") is not None:
            return f"its rope_scaling is {dict(scaling)!r}, not of the type 'ntk' with a factor of 1 or more"
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


def _gte_keys(config: Config) -> dict[str, Any]:
    rope = config.values.get("rope_parameters")
    rope = rope if isinstance(rope, Mapping) else {}
    is_linear = rope.get("rope_type") == "linear"
    return {
        **bert_keys(config),
        "rope.freq_base": config.real("rope_theta", 10000.0, rope.get("rope_theta")),
        "rope.scaling.factor": config.real("factor", 1.0, rope.get("factor")) if is_linear else 1.0,
    }


def _gte_unsupported(config: Mapping[str, Any]) -> str:
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping) or rope.get("rope_theta") is None:
        return "it does not declare the base of its rotary positions (rope_parameters)"
    is_whole = rope.get("rope_type") == "default" or rope.get("factor") is not None
    if rope.get("rope_type") not in ("default", "linear") or not is_whole:
        return f"its rope_parameters are {dict(rope)!r}, not of the type 'default', or 'linear' with a factor"
    size = config.get("head_dim")
    return differs(config, {"hidden_act": "gelu"}) if size is None else f"its head_dim is {size!r}"
