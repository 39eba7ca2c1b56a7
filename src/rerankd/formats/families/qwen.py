"""Qwen3 and Qwen2 as causal models: with their output matrix, with a head of one label, or with a projector
of tokens' states.

Sources: Qwen3ForCausalLM, Qwen3ForSequenceClassification and those of Qwen2 in transformers 5; JinaForRanking
in the repository jinaai/jina-reranker-v3, whose projector is two matrices without biases and a ReLU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rerankd.formats.families.family import Config, Family
from rerankd.formats.module_head import STEPS

LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
OF_QWEN3 = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_BIASED_IN_QWEN2 = ("attn_q", "attn_k", "attn_v")
PROJECTOR_STEPS = (("dense", "cls", "relu"), ("dense", "cls.output", ""))
"""The steps of JinaForRanking's projector."""
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def qwen3(config: Mapping[str, Any]) -> Family:
    """Qwen3ForCausalLM with this config.json."""
    return family("qwen3", config, {**LAYER, **OF_QWEN3}, biased=())


def qwen2(config: Mapping[str, Any]) -> Family:
    """Qwen2ForCausalLM with this config.json."""
    return family("qwen2", config, LAYER, biased=_BIASED_IN_QWEN2)


def qwen3_head(config: Mapping[str, Any]) -> Family:
    """Qwen3ForSequenceClassification: its score is the product of a row and the last token's state."""
    return _headed(qwen3({**config, "tie_word_embeddings": True}))


def qwen2_head(config: Mapping[str, Any]) -> Family:
    """Qwen2ForSequenceClassification, likewise."""
    return _headed(qwen2({**config, "tie_word_embeddings": True}))


def jina_ranking(config: Mapping[str, Any]) -> Family:
    """JinaForRanking: it compares the projected states of tokens."""
    body = qwen3({**config, "tie_word_embeddings": True})

    def with_steps(config: Config) -> dict[str, Any]:
        return {**keys(config), STEPS: PROJECTOR_STEPS}

    def with_projector(config: Config) -> dict[str, tuple[int, ...]]:
        width = config.size("hidden_size")
        # The file defines the width of the vectors: the class itself has 512.
        return {**shapes(config), "cls": (width, width // 2), "cls.output": ()}

    tensors = {**body.tensors, "cls": "projector.0", "cls.output": "projector.2"}
    return replace(body, tensors=tensors, keys=with_steps, shapes=with_projector)


def _headed(family: Family) -> Family:
    return replace(family, tensors={**family.tensors, "cls.output": "score"})


def family(
    architecture: str, config: Mapping[str, Any], layer: Mapping[str, str], biased: tuple[str, ...]
) -> Family:
    tensors = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    # Tied embeddings: the embedding matrix predicts the next token, too, even if the file has a copy of it.
    if not config.get("tie_word_embeddings", False):
        tensors["output"] = "lm_head"
    return Family(
        architecture,
        tensors,
        "model.layers.",
        layer,
        keys,
        _unsupported,
        shapes=shapes,
        unbiased=tuple(name for name in (*tensors, *layer) if name not in biased),
        is_causal=True,
    )


def _head_size(config: Config) -> int:
    """The size of a head. Qwen2 has no key for it."""
    heads, width = config.size("num_attention_heads"), config.size("hidden_size")
    default = 128 if config.values.get("model_type") == "qwen3" else max(width // heads, 1)
    return config.size("head_dim", default)


def _kv_heads(config: Config) -> int:
    return config.size("num_key_value_heads", config.size("num_attention_heads"))


def keys(config: Config) -> dict[str, Any]:
    rope = config.values.get("rope_parameters")
    base = rope.get("rope_theta") if isinstance(rope, Mapping) else None
    return {
        "attention.causal": True,
        "pooling_type": 0,  # none
        "attention.head_count_kv": _kv_heads(config),
        "attention.key_length": _head_size(config),
        "attention.value_length": _head_size(config),
        "attention.layer_norm_rms_epsilon": config.real("rms_norm_eps", 1e-6),
        "rope.freq_base": config.real("rope_theta", 10_000.0, base),
        **_window(config),
    }


def _window(config: Config) -> dict[str, Any]:
    """The keys of a window that some layers have."""
    pattern = tuple(kind == _LOCAL for kind in _kinds(config.values, config.layers))
    if not any(pattern) or config.values.get("sliding_window") is None:
        return {}  # _unsupported refuses windows without a size
    window = config.size("sliding_window")
    return {"attention.sliding_window": window, "attention.sliding_window_pattern": pattern}


def _kinds(config: Mapping[str, Any], layers: int) -> Sequence[Any]:
    """What the attention of each layer reads, as the classes of transformers take it from a configuration."""
    if (declared := config.get("layer_types")) is not None:
        return declared if isinstance(declared, Sequence) else ()
    if not (config.get("use_sliding_window") and config.get("sliding_window")):
        return (_GLOBAL,) * layers
    first = config.get("max_window_layers", 28)
    return [_LOCAL if isinstance(first, int) and at >= first else _GLOBAL for at in range(layers)]


def shapes(config: Config) -> dict[str, tuple[int, ...]]:
    width, size, inner = config.size("hidden_size"), _head_size(config), config.size("intermediate_size")
    queries, keys = config.size("num_attention_heads") * size, _kv_heads(config) * size
    return {
        "attn_q": (width, queries),
        "attn_k": (width, keys),
        "attn_v": (width, keys),
        "attn_output": (queries, width),
        "attn_q_norm": (size,),
        "attn_k_norm": (size,),
        "ffn_gate": (width, inner),
        "output": (width, config.size("vocab_size")),
        "token_embd": (width, config.size("vocab_size")),
    }


def _unsupported(config: Mapping[str, Any]) -> str:
    if config.get("hidden_act", "silu") != "silu":
        return f"its hidden_act is {config['hidden_act']!r}, not 'silu'"
    count = config.get("num_hidden_layers")
    kinds = _kinds(config, count) if isinstance(count, int) and 0 < count < 10_000 else ()
    if other := [kind for kind in kinds if kind not in (_LOCAL, _GLOBAL)]:
        return f"its layer_types contain {other[0]!r:.40}"
    if _LOCAL in kinds and not (config.get("use_sliding_window") and config.get("sliding_window")):
        return "some of its layers have a window, but its use_sliding_window or sliding_window is not set"
    if len(kinds) != count:
        return f"its layer_types have {len(kinds)} entries for {count!r} layers"
    if config.get("attention_bias"):
        return "its attention has biases (attention_bias)"
    for name in ("rope_parameters", "rope_scaling"):
        rope = config.get(name)
        if isinstance(rope, Mapping) and rope.get("rope_type", rope.get("type", "default")) != "default":
            return f"its rotary positions are scaled: its {name} is {dict(rope)!r:.100}"
        if isinstance(rope, Mapping) and any(isinstance(one, Mapping) for one in rope.values()):
            return f"its {name} differs between layers"
    heads, keys = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if isinstance(heads, int) and isinstance(keys, int) and (keys < 1 or heads % keys):
        return f"its {heads} attention heads can't share {keys} key heads"
    return ""
