"""ModernBERT. Source: ModernBertForSequenceClassification of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rerankd.formats.checkpoint_files import CONFIG
from rerankd.formats.families.family import Config, Family


def _keys(config: Config) -> dict[str, Any]:
    values = config.values
    layers, each = config.layers, config.size("global_attn_every_n_layers", 3)
    kinds = values.get("layer_types") or ["" if at % each else "full_attention" for at in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        config.fail(f"its {CONFIG} must have the type of each layer in layer_types: it is damaged")
    everywhere = _theta(config, "full_attention", "global_rope_theta", 160000.0)
    return {
        "attention.layer_norm_epsilon": config.real("norm_eps", 1e-5),
        "attention.sliding_window": config.size("local_attention", 128),
        "attention.sliding_window_pattern": tuple(kind != "full_attention" for kind in kinds),
        "rope.freq_base": everywhere,
        "rope.freq_base_swa": _theta(config, "sliding_attention", "local_rope_theta", 10000.0, everywhere),
        "classifier.pooling_type": 1 if values.get("classifier_pooling") == "mean" else 2,
    }


def _theta(config: Config, kind: str, older: str, default: float, unset: float | None = None) -> float:
    """The base of the rotary positions of one kind of layer. transformers 5 has it in the table
    rope_parameters, earlier versions under the key `older`. `unset` is the value for null."""
    table = config.values.get("rope_parameters")
    found = table.get(kind) if isinstance(table, Mapping) else None
    if isinstance(found, Mapping):
        return config.real("rope_theta", default, found.get("rope_theta"))
    if unset is not None and config.values.get(older, default) is None:
        return unset
    return config.real(older, default)


def _unsupported(config: Mapping[str, Any]) -> str:
    for key in ("hidden_activation", "classifier_activation"):
        if config.get(key, "gelu") != "gelu":
            return f"its {key} is {config[key]!r}, not 'gelu'"
    if config.get("classifier_pooling", "cls") not in ("mean", "cls"):
        return f"its classifier_pooling is {config['classifier_pooling']!r}, not 'mean' or 'cls'"
    parameters = config.get("rope_parameters")
    tables = [*parameters.values()] if isinstance(parameters, Mapping) else []
    # A single table for all layers has numbers where a table for each kind of layer is required.
    if not all(one is None or isinstance(one, Mapping) for one in tables):
        return "its rope_parameters do not define the rotary positions of each kind of layer"
    scaled = [*tables, config.get("rope_scaling")]
    kinds = (one.get("rope_type", one.get("type", "default")) for one in scaled if isinstance(one, Mapping))
    return "" if all(kind == "default" for kind in kinds) else "its rotary positions are scaled"


MODERN_BERT = Family(
    "modern-bert",
    {
        "token_embd": "model.embeddings.tok_embeddings",
        "token_embd_norm": "model.embeddings.norm",
        "output_norm": "model.final_norm",
        "cls": "head.dense",
        "cls.norm": "head.norm",
        "cls.output": "classifier",
    },
    "model.layers.",
    {
        "attn_norm": "attn_norm",
        "attn_qkv": "attn.Wqkv",
        "attn_output": "attn.Wo",
        "ffn_norm": "mlp_norm",
        "ffn_up": "mlp.Wi",
        "ffn_down": "mlp.Wo",
    },
    _keys,
    _unsupported,
    gated=True,
)
