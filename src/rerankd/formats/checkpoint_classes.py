"""The table of model classes of transformers that rerankd supports in safetensors format."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from rerankd.domain import Refusal
from rerankd.formats.checkpoint_files import SUFFIX
from rerankd.formats.families.bert import BERT, DISTILBERT, JINA_V2, ROBERTA, electra
from rerankd.formats.families.deberta_v2 import DEBERTA_V2
from rerankd.formats.families.family import Family
from rerankd.formats.families.gemma import gemma, gemma2, gemma3
from rerankd.formats.families.gte import gte, new
from rerankd.formats.families.llama import bidirectional, llama
from rerankd.formats.families.modern_bert import MODERN_BERT
from rerankd.formats.families.qwen import jina_ranking, qwen2, qwen2_head, qwen3, qwen3_head
from rerankd.formats.gguf_header import Tensor
from rerankd.formats.late_interaction import STANFORD

CLASSES: Mapping[str, Family | Callable[[Mapping[str, Any]], Family]] = {
    "BertForSequenceClassification": BERT,
    "CamembertForSequenceClassification": ROBERTA,
    "DebertaV2ForSequenceClassification": DEBERTA_V2,
    "DistilBertForSequenceClassification": DISTILBERT,
    "ElectraForSequenceClassification": electra,
    "Gemma2ForCausalLM": gemma2,
    "Gemma3ForCausalLM": gemma3,
    "GemmaForCausalLM": gemma,
    "GteForSequenceClassification": gte,
    "JinaForRanking": jina_ranking,
    "LlamaBidirectionalForSequenceClassification": bidirectional,
    "LlamaForCausalLM": llama,
    "ModernBertForSequenceClassification": MODERN_BERT,
    "NewForSequenceClassification": new,
    "Qwen2ForCausalLM": qwen2,
    "Qwen2ForSequenceClassification": qwen2_head,
    "Qwen3ForCausalLM": qwen3,
    "Qwen3ForSequenceClassification": qwen3_head,
    "RobertaForSequenceClassification": ROBERTA,
    "XLMRobertaForSequenceClassification": ROBERTA,
}
"""A class's family, or the function that returns it for a configuration."""

# Labels of a reranker with two labels: transformers' default names, and names of the second one.
_DEFAULT_LABELS = ("label_0", "label_1")
_RELEVANT = frozenset(("1", "relevant", "positive", "true", "yes"))


def family_of(kind: str, config: Mapping[str, Any], tensors: Collection[str]) -> Family | None:
    """The family of a class `kind` with this config.json and these tensors, None if the class is unknown."""
    if kind == "XLMRobertaForSequenceClassification" and "roberta.emb_ln.weight" in tensors:
        return JINA_V2
    known = CLASSES.get(kind)
    return known(config) if callable(known) else known


def other_labels(config: Mapping[str, Any], head: Tensor | None) -> str:
    """Why a head with two rows is not a reranker's, by the names of its labels; "" if it may be one."""
    names = config.get("id2label")
    if head is None or head.rows != 2 or not isinstance(names, Mapping):
        return ""
    first, second = (str(names.get(at, names.get(str(at)))) for at in (0, 1))
    if (first.lower(), second.lower()) == _DEFAULT_LABELS or second.lower() in _RELEVANT:
        return ""
    return f"it is a classifier with the labels {first!r} and {second!r}, not a reranker"


def body_of(kind: str, config: Mapping[str, Any], tensors: Collection[str]) -> Family | None:
    """The family of a class without a head, such as ModernBertModel; None if the class is unknown. Its
    tensors have the names of the class with a head, without their first part. ColBERT's own class has those
    of BERT unchanged."""
    if kind == STANFORD:
        is_bert = config.get("model_type") == "bert"
        return replace(BERT, tensors=_without_head(BERT)) if is_bert else None
    headed = family_of(f"{kind.removesuffix('Model')}ForSequenceClassification", config, tensors)
    if headed is None or headed.is_causal or not kind.endswith("Model"):
        return None
    own = _without_head(headed)
    prefix = own["token_embd"].partition(".")[0] + "."
    names = {gguf: name.removeprefix(prefix) for gguf, name in own.items()}
    return replace(headed, tensors=names, layers=headed.layers.removeprefix(prefix))


def _without_head(family: Family) -> dict[str, str]:
    return {gguf: name for gguf, name in family.tensors.items() if not gguf.startswith("cls")}


def quantised(config: Mapping[str, Any]) -> Refusal | None:
    """Why weights that are quantised in a form that rerankd does not read are refused; None for others."""
    plain = f"use its unquantised model{SUFFIX} or a GGUF file"
    if isinstance(config.get("quantization"), Mapping):
        return Refusal("its weights are quantised for MLX, which rerankd does not read", plain)
    quantization = config.get("quantization_config")
    if isinstance(quantization, Mapping):
        method = quantization.get("quant_method", "unknown")
        return Refusal(f"its weights are quantised ({method}), which rerankd does not read", plain)
    return None
