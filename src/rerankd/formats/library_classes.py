"""(pure) Model classes of which rerankd has no graph, but whose library may compute them.

They are cross-encoders with one label: encoders of transformers whose tokenizer joins a pair of texts, and
classes whose code is in the model's own files; and causal models of transformers whose files declare prompt
and labels. Other classes may need a prompt that only a model card has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Library = Literal["", "transformers", "own code"]
"""Who knows the class: "" if nobody does."""

# Classes of transformers, and whether the first positions belong to padding, as RoBERTa's do.
_CLASSES = {
    "AlbertForSequenceClassification": False,
    "BigBirdForSequenceClassification": False,
    "ConvBertForSequenceClassification": False,
    "Data2VecTextForSequenceClassification": True,
    "DebertaForSequenceClassification": False,
    "ErnieForSequenceClassification": False,
    "IBertForSequenceClassification": True,
    "LongformerForSequenceClassification": True,
    "MPNetForSequenceClassification": True,
    "MegatronBertForSequenceClassification": False,
    "MobileBertForSequenceClassification": False,
    "NystromformerForSequenceClassification": False,
    "RemBertForSequenceClassification": False,
    "RoFormerForSequenceClassification": False,
    "RobertaPreLayerNormForSequenceClassification": True,
    "SqueezeBertForSequenceClassification": False,
    "XLMRobertaXLForSequenceClassification": True,
    "XmodForSequenceClassification": True,
}
# Without these, nothing tells how long a pair may be, and whether the tokenizer is the model's.
_SIZES = ("max_position_embeddings", "vocab_size")
_OWN_CODE = "AutoModelForSequenceClassification"


def library_of(kind: str, config: Mapping[str, Any], *, is_causal: bool) -> Library:
    """The library of a class `kind` with this config.json. `is_causal`: its score is computed from the logits
    of the next token; otherwise it must be a cross-encoder with one label."""
    if is_causal:
        is_known = kind.endswith("ForCausalLM") and not config.get("auto_map")
        return "transformers" if is_known and all(map(config.get, _SIZES)) else ""
    labels, code = config.get("id2label"), config.get("auto_map")
    if not isinstance(labels, Mapping) or len(labels) != 1 or not all(map(config.get, _SIZES)):
        return ""
    if isinstance(code, Mapping):
        return "own code" if _OWN_CODE in code else ""
    named = str(config.get("model_type")).replace("-", "").replace("_", "")
    return "transformers" if kind in _CLASSES and kind.lower().startswith(named) else ""


def spare_positions(kind: str, config: Mapping[str, Any]) -> int:
    """How many of the first positions belong to padding."""
    pad = config.get("pad_token_id")
    return pad + 1 if _CLASSES.get(kind) and isinstance(pad, int) and 0 <= pad < 16 else 0
