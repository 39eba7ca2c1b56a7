"""Gemma 1, 2 and 3 (texts) as causal models.

Source: GemmaForCausalLM, Gemma2ForCausalLM and Gemma3ForCausalLM of transformers 5.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rerankd.formats.families import qwen
from rerankd.formats.families.family import Config, Family, differs

_HEAD_SIZE = 256
_AFTER = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def gemma(config: Mapping[str, Any]) -> Family:
    """GemmaForCausalLM with this config.json."""
    return _family("gemma", qwen.LAYER)


def gemma2(config: Mapping[str, Any]) -> Family:
    """Gemma2ForCausalLM with this config.json."""
    return _family("gemma2", {**qwen.LAYER, **_AFTER})


def gemma3(config: Mapping[str, Any]) -> Family:
    """Gemma3ForCausalLM with this config.json."""
    return _family("gemma3", {**qwen.LAYER, **_AFTER, **qwen.OF_QWEN3})


def _family(architecture: str, layer: Mapping[str, str]) -> Family:
    # The embedding matrix predicts the next token, too, even if the file has a copy of it.
    tied = qwen.family(architecture, {"tie_word_embeddings": True}, layer, biased=())
    return replace(tied, keys=_keys, unsupported=_unsupported, shapes=_shapes)


def _with_head_size(config: Config) -> Config:
    values = {"head_dim": _HEAD_SIZE, "num_key_value_heads": config.values.get("num_attention_heads")}
    return replace(config, values={**values, **config.values})


def _shapes(config: Config) -> dict[str, tuple[int, ...]]:
    return qwen.shapes(_with_head_size(config))


def _keys(config: Config) -> dict[str, Any]:
    values, full = config.values, _rope(config.values, "full_attention")
    found = {
        **qwen.keys(_with_head_size(config)),
        "attention.causal": not values.get("use_bidirectional_attention"),
        "attention.norm_offset": 1.0,  # which GGUF's converter adds to the weights
        "rope.freq_base": config.real("rope_theta", 10_000.0, full.get("rope_theta")),
        "rope.scaling.factor": config.real("factor", 1.0, full.get("factor")),
    }
    if values.get("model_type") == "gemma":
        return found
    local = _rope(values, "sliding_attention")
    base = config.real("rope_local_base_freq", 10_000.0, local.get("rope_theta"))
    found |= {
        "rope.freq_base_swa": base,
        "attention.scale": config.real("query_pre_attn_scalar", 256.0) ** -0.5,
        "attention.sliding_window": config.size("sliding_window", 4096),
    }
    if kinds := values.get("layer_types"):
        found["attention.sliding_window_pattern"] = tuple(one == "sliding_attention" for one in kinds)
    for of in ("attn", "final"):
        if values.get(f"{of}_logit_softcapping") is not None:
            found[f"{of}_logit_softcapping"] = config.real(f"{of}_logit_softcapping", 1.0)
    return found


def _rope(config: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """The rotary positions of a kind of layers: one for all of them, or one for each kind."""
    rope = config.get("rope_parameters")
    rope = rope if isinstance(rope, Mapping) else {}
    if isinstance(own := rope.get(kind), Mapping):
        return own
    old = config.get("rope_scaling")
    return {**rope, **(old if isinstance(old, Mapping) and kind == "full_attention" else {})}


def _unsupported(config: Mapping[str, Any]) -> str:
    for kind in ("full_attention", "sliding_attention"):
        rope = _rope(config, kind)
        known = ("default", "linear") if kind == "full_attention" else ("default",)
        if rope.get("rope_type", rope.get("type", "default")) not in known:
            return f"its rotary positions are scaled: {dict(rope)!r:.100}"
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list) or {*kinds} - {"full_attention", "sliding_attention"}:
        return f"its layer_types are {kinds!r:.80}"
    # Gemma's first configurations name the plain form, but the class has always computed the tanh form.
    return differs(config, {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False})
