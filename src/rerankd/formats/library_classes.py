"""(pure) Model classes of which rerankd has no graph, but whose library may compute them.

They are cross-encoders with one label: encoders of transformers whose tokenizer joins a pair of texts, and
classes whose code is in the model's own files; causal models of transformers whose files declare prompt and
labels; and late-interaction models, whose files declare how texts are read. Other classes may need a prompt
that only a model card has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from rerankd.formats.late_interaction import STANFORD

if TYPE_CHECKING:
    from rerankd.formats.sentence_transformers import Layout

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
_OWN_BODY = "AutoModel"


def library_of(kind: str, config: Mapping[str, Any], layout: Layout) -> Library:
    """The library of a class `kind` with this config.json, by what `layout` says about the score: it is
    computed from the logits of the next token, or from vectors of tokens; otherwise the model must be a
    cross-encoder with one label."""
    if layout.is_causal:
        is_known = kind.endswith("ForCausalLM") and not config.get("auto_map")
        return "transformers" if is_known and all(map(config.get, _SIZES)) else ""
    if layout.interaction is not None:
        return _of_body(kind, config) if all(map(config.get, _SIZES)) else ""
    labels, code = config.get("id2label"), config.get("auto_map")
    if not isinstance(labels, Mapping) or len(labels) != 1 or not all(map(config.get, _SIZES)):
        return ""
    if isinstance(code, Mapping):
        return "own code" if _OWN_CODE in code else ""
    named = str(config.get("model_type")).replace("-", "").replace("_", "")
    return "transformers" if kind in _CLASSES and kind.lower().startswith(named) else ""


def _of_body(kind: str, config: Mapping[str, Any]) -> Library:
    """The library of a class without a head."""
    code = config.get("auto_map")
    if code:
        return "own code" if isinstance(code, Mapping) and _OWN_BODY in code else ""
    named = str(config.get("model_type")).replace("-", "").replace("_", "")
    is_known = kind == STANFORD or (kind.endswith("Model") and kind.lower().startswith(named))
    return "transformers" if is_known else ""


def spare_positions(kind: str, config: Mapping[str, Any]) -> int:
    """How many of the first positions belong to padding."""
    pad = config.get("pad_token_id")
    return pad + 1 if _CLASSES.get(kind) and isinstance(pad, int) and 0 <= pad < 16 else 0
