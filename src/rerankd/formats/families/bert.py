"""BERT, RoBERTa and XLM-R, CamemBERT, ELECTRA, DistilBERT, and jina-reranker-v2.

Sources: the classes …ForSequenceClassification of transformers; for jina-reranker-v2, the class in its
repository (jinaai/jina-reranker-v2-base-multilingual).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rerankd.formats.families.family import Config, Family, differs

_ROBERTA_HEAD = {"cls": "classifier.dense", "cls.output": "classifier.out_proj"}


def bert_keys(config: Config) -> dict[str, Any]:
    return {"attention.layer_norm_epsilon": config.real("layer_norm_eps", 1e-12)}


def bert_unsupported(config: Mapping[str, Any]) -> str:
    if config.get("hidden_act", "gelu") != "gelu":
        return f"its activation function is {config['hidden_act']!r}, not 'gelu'"
    if config.get("position_embedding_type", "absolute") != "absolute":
        return "its position embeddings are relative"
    return "it is a decoder" if config.get("is_decoder") else ""


def bert_like(prefix: str, head: Mapping[str, str], *, spare_positions: bool) -> Family:
    return Family(
        "bert",
        {
            "token_embd": f"{prefix}.embeddings.word_embeddings",
            "position_embd": f"{prefix}.embeddings.position_embeddings",
            "token_types": f"{prefix}.embeddings.token_type_embeddings",
            "token_embd_norm": f"{prefix}.embeddings.LayerNorm",
            **head,
        },
        f"{prefix}.encoder.layer.",
        {
            "attn_q": "attention.self.query",
            "attn_k": "attention.self.key",
            "attn_v": "attention.self.value",
            "attn_output": "attention.output.dense",
            "attn_output_norm": "attention.output.LayerNorm",
            "ffn_up": "intermediate.dense",
            "ffn_down": "output.dense",
            "layer_output_norm": "output.LayerNorm",
        },
        bert_keys,
        bert_unsupported,
        spare_positions=spare_positions,
    )


BERT = bert_like("bert", {"cls": "bert.pooler.dense", "cls.output": "classifier"}, spare_positions=False)
ROBERTA = bert_like("roberta", _ROBERTA_HEAD, spare_positions=True)
# jina-reranker-v2: XLM-R with the tensor names of flash-attention's modules; query, key and value are merged.
JINA_V2 = replace(
    ROBERTA,
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
JINA_V2 = replace(JINA_V2, tensors={**JINA_V2.tensors, "token_embd_norm": "roberta.emb_ln"})


def electra(config: Mapping[str, Any]) -> Family:
    """ELECTRA. If its embeddings are narrower than its states, a matrix projects them."""
    family = bert_like("electra", _ROBERTA_HEAD, spare_positions=False)
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


DISTILBERT = Family(
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
    unsupported=lambda config: differs(config, {"activation": "gelu"}),
    sizes={
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    },
)
