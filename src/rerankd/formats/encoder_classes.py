"""The table of classes whose checkpoints can be computed: those of checkpoint_classes.py, and DeBERTa, mGTE,
ELECTRA and DistilBERT, whose parts depend on their configuration.

Sources: DebertaV2ForSequenceClassification, ElectraForSequenceClassification and
DistilBertForSequenceClassification of transformers; NewForSequenceClassification of Alibaba-NLP/new-impl; the
XLMRobertaForSequenceClassification of jinaai/jina-reranker-v2-base-multilingual.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from rerankd.formats import checkpoint_classes
from rerankd.formats.checkpoint_classes import Config, Family, bert_keys, bert_like

# Of DeBERTa's pooler. The other heads have one that their class fixes.
_POOLER_ACTIVATIONS = ("gelu", "relu", "tanh")
# What a configuration may call the labels of a reranker with two, the relevant one second; without names
# transformers calls them so.
_UNNAMED = ("label_0", "label_1")
_RELEVANT = frozenset(("1", "relevant", "positive", "true", "yes"))


def family_of(kind: str, config: Mapping[str, Any], tensors: Collection[str]) -> Family | None:
    """Where a model of this class keeps what; None for a class that is not known."""
    if kind == "XLMRobertaForSequenceClassification" and "roberta.emb_ln.weight" in tensors:
        return _FLASH
    known = CLASSES.get(kind)
    return known(config) if callable(known) else known


def other_labels(config: Mapping[str, Any], rows: int) -> str:
    """Why the difference of the logits of two labels is no relevance, by the labels' names; "" where it is or
    where there are not two (`rows`)."""
    said = config.get("id2label")
    if rows != 2 or not isinstance(said, Mapping):
        return ""
    names = tuple(str(said.get(at, said.get(str(at)))) for at in (0, 1))
    lower = tuple(name.lower() for name in names)
    if lower == _UNNAMED or lower[1] in _RELEVANT:
        return ""
    return f"it is a classifier whose two labels are {names[0]!r} and {names[1]!r}: not a reranker"


# jina-reranker-v2: XLM-R with tensors named as flash-attention's modules are, query, key and value in one.
_FLASH = replace(
    bert_like(
        "roberta", {"cls": "classifier.dense", "cls.output": "classifier.out_proj"}, spare_positions=True
    ),
    layers="roberta.encoder.layers.",
    layer_tensors={
        "attn_qkv": "mixer.Wqkv",
        "attn_output": "mixer.out_proj",
        "attn_output_norm": "norm1",
        "ffn_up": "mlp.fc1",
        "ffn_down": "mlp.fc2",
        "layer_output_norm": "norm2",
    },
)
_FLASH = replace(_FLASH, tensors={**_FLASH.tensors, "token_embd_norm": "roberta.emb_ln"})


def _electra(config: Mapping[str, Any]) -> Family:
    head = {"cls": "classifier.dense", "cls.output": "classifier.out_proj"}
    family = bert_like("electra", head, spare_positions=False)
    tensors = dict(family.tensors)
    if config.get("embedding_size", 128) != config.get("hidden_size"):
        tensors["token_embd_project"] = "electra.embeddings_project"
    return replace(family, tensors=tensors, keys=_electra_keys, shapes=_electra_shapes)


def _electra_keys(config: Config) -> dict[str, Any]:
    narrow = config.size("embedding_size", 128)
    return {**bert_keys(config), "token_embedding_length": narrow, "classifier.activation": "gelu"}


def _electra_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    narrow = config.size("embedding_size", 128)
    return {"token_embd_norm": (narrow,), "token_embd_project": (narrow, config.size("hidden_size"))}


_DISTILBERT = Family(
    "bert",
    {
        "token_embd": "distilbert.embeddings.word_embeddings",
        "position_embd": "distilbert.embeddings.position_embeddings",
        "token_embd_norm": "distilbert.embeddings.LayerNorm",
        "cls": "pre_classifier",
        "cls.output": "classifier",
    },
    "distilbert.transformer.layer.",
    {
        "attn_q": "attention.q_lin",
        "attn_k": "attention.k_lin",
        "attn_v": "attention.v_lin",
        "attn_output": "attention.out_lin",
        "attn_output_norm": "sa_layer_norm",
        "ffn_up": "ffn.lin1",
        "ffn_down": "ffn.lin2",
        "layer_output_norm": "output_layer_norm",
    },
    keys=lambda config: {"attention.layer_norm_epsilon": 1e-12, "classifier.activation": "relu"},
    unsupported=lambda config: _other_than(config, {"activation": "gelu"}),
    sizes={
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    },
)


def _deberta_keys(config: Config) -> dict[str, Any]:
    positions = config.size("max_position_embeddings")
    furthest = config.values.get("max_relative_positions", -1)
    is_set = isinstance(furthest, int) and furthest > 0
    return {
        "attention.layer_norm_epsilon": config.real("layer_norm_eps", 1e-7),
        "attention.relative_buckets_count": config.size("position_buckets", -1, least=-1),
        "attention.relative_max_distance": furthest if is_set else positions,
        "classifier.activation": config.values.get("pooler_hidden_act", "gelu"),
    }


def _deberta_unsupported(config: Mapping[str, Any]) -> str:
    """All but what DeBERTa-v3 has: v2's convolution after the first layer, say."""
    kinds = config.get("pos_att_type")
    kinds = kinds.lower().split("|") if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or sorted(str(kind).strip() for kind in kinds) != ["c2p", "p2c"]:
        return f"its pos_att_type is {config.get('pos_att_type')!r}, not 'p2c|c2p'"
    if config.get("pooler_hidden_act", "gelu") not in _POOLER_ACTIVATIONS:
        known = " or ".join(_POOLER_ACTIVATIONS)
        return f"its pooler_hidden_act is {config['pooler_hidden_act']!r}, not {known}"
    width, heads, buckets = (
        config.get(key) for key in ("hidden_size", "num_attention_heads", "position_buckets")
    )
    furthest = config.get("max_relative_positions", -1)
    furthest = (
        furthest if isinstance(furthest, int) and furthest > 0 else config.get("max_position_embeddings")
    )
    if isinstance(buckets, bool) or not isinstance(buckets, int) or buckets < 4:
        return f"its position_buckets is {buckets!r}: each distance has an embedding of its own"
    if isinstance(furthest, int) and furthest <= buckets // 2 + 1:
        return f"its {buckets} position_buckets are too many for {furthest} positions"
    return _other_than(
        config,
        {
            "hidden_act": "gelu",
            "conv_kernel_size": 0,
            "type_vocab_size": 0,
            "embedding_size": width,
            "pooler_hidden_size": width,
            "attention_head_size": width // heads
            if isinstance(width, int) and isinstance(heads, int) and heads
            else 0,
        },
        said={
            "relative_attention": True,
            "position_biased_input": False,
            "share_att_key": True,
            "norm_rel_ebd": "layer_norm",
        },
    )


_DEBERTA = bert_like("deberta", {"cls": "pooler.dense", "cls.output": "classifier"}, spare_positions=False)
_DEBERTA = replace(
    _DEBERTA,
    architecture="deberta-v2",
    tensors={
        **{
            name: own
            for name, own in _DEBERTA.tensors.items()
            if name not in ("position_embd", "token_types")
        },
        "rel_embd": "deberta.encoder.rel_embeddings",
        "rel_embd_norm": "deberta.encoder.LayerNorm",
    },
    layer_tensors={
        **_DEBERTA.layer_tensors,
        "attn_q": "attention.self.query_proj",
        "attn_k": "attention.self.key_proj",
        "attn_v": "attention.self.value_proj",
    },
    keys=_deberta_keys,
    unsupported=_deberta_unsupported,
    shapes=lambda config: {"rel_embd": (config.size("hidden_size"), 2 * config.size("position_buckets"))},
)


def _gte(config: Mapping[str, Any]) -> Family:
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
        _gte_keys,
        _gte_unsupported,
        gated=True,
        unbiased=("ffn_up",),
    )


def _gte_keys(config: Config) -> dict[str, Any]:
    scaling = config.values.get("rope_scaling")
    factor = scaling.get("factor") if isinstance(scaling, Mapping) else None
    return {
        **bert_keys(config),
        "rope.freq_base": config.real("rope_theta", 10000.0),
        "rope.scaling.factor": 1.0 if factor is None else config.real("rope_scaling.factor", 1.0, factor),
    }


def _gte_unsupported(config: Mapping[str, Any]) -> str:
    scaling = config.get("rope_scaling")
    if config.get("rope_theta") is None:
        return "it does not say the base of its rotary positions (rope_theta)"
    if scaling is not None:
        if not isinstance(scaling, Mapping):
            return f"its rope_scaling is {scaling!r}"
        kind, factor = scaling.get("type", scaling.get("rope_type")), scaling.get("factor")
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool) and factor >= 1
        if kind != "ntk" or not is_number or scaling.get("mixed_b") is not None:
            return f"its rope_scaling is {dict(scaling)!r}, not of the type 'ntk' with a factor"
    return _other_than(
        config,
        {
            "hidden_act": "gelu",
            "layer_norm_type": "layer_norm",
            "pack_qkv": True,
            "logn_attention_scale": False,
        },
        said={"position_embedding_type": "rope"},
    )


def _other_than(
    config: Mapping[str, Any], unless_said: Mapping[str, Any], *, said: Mapping[str, Any] | None = None
) -> str:
    """What of a configuration has another value than is computed here; "" for nothing. `said` are the keys
    whose default is another one, so that they must be there."""
    for key, value in (said or {}).items():
        if config.get(key) != value:
            return f"its {key} is {config.get(key)!r}, not {value!r}"
    for key, value in unless_said.items():
        if config.get(key) is not None and config[key] != value:
            return f"its {key} is {config[key]!r}, not {value!r}"
    return ""


CLASSES: Mapping[str, Family | Callable[[Mapping[str, Any]], Family]] = {
    **checkpoint_classes.FAMILIES,
    "DebertaV2ForSequenceClassification": _DEBERTA,
    "DistilBertForSequenceClassification": _DISTILBERT,
    "ElectraForSequenceClassification": _electra,
    "NewForSequenceClassification": _gte,
}
