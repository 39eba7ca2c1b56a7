"""(pure) Which files' rank heads give the model's own score, and why the others' do not.

A GGUF file's rank score is tanh(cls · h + b) of the first token's state (ModernBERT: gelu and then `cls.norm`
of the mean, unless the file says cls), then `cls.output · h + b`, each where the file has it: llama.cpp's
`build_pooling` (build b11434), which the format's converter writes for. That is the head of RoBERTa, XLM-R,
NeoBERT and ModernBERT. It is not BERT's, whose `pooler.dense` the converter drops and whose second text gets
token type 0; not DistilBERT's, which has a ReLU; and not jina-bert-v2's, whose pooler is dropped too, so that
the tanh falls on the one logit.
"""

from __future__ import annotations

from rerankd.domain import Pooling
from rerankd.formats.metadata import ModelMetadata

_HEADED = ("bert", "modern-bert", "neo-bert")


def why_not(metadata: ModelMetadata, pooling: Pooling | None = None) -> str:
    """Why the rank score of this encoder would not be the model's, "" when it is.

    `pooling` is what a ModernBERT's head is known to read, None where only the file can say it.
    """
    arch = metadata.architecture
    if metadata.decision_blocks:
        return "it is a decision model, which chooses among answers and does not score documents"
    if arch == "jina-bert-v2":
        return (
            "llama.cpp computes another score than a jina-bert-v2 reranker: its converter drops the pooler "
            "(pooler.dense) and its graph puts a tanh on the one logit"
        )
    if arch not in _HEADED:
        return f"llama.cpp has no rank head for {arch}"
    if arch == "bert" and metadata.token_type_count > 1 and metadata.format == "gguf":
        pooler = "" if metadata.has_cls else ", and the converter drops its pooler (pooler.dense)"
        return (
            "it is a BERT cross-encoder with two token types, like the ms-marco-MiniLM family: llama.cpp "
            f"gives both texts type 0{pooler}, so even the order of documents changes"
        )
    parts = (("cls.weight", metadata.has_cls), ("cls.output.weight", metadata.has_cls_output))
    missing = [name for name, there in parts if not there]
    if missing:
        return f"its rank head is not whole: {' and '.join(missing)} missing (lost in conversion)"
    if arch == "bert" and metadata.tokenizer_model == "bert":
        return (
            "it is a DistilBERT or BERT cross-encoder: llama.cpp puts a tanh where its head has another step"
        )
    if metadata.cls_output_rows != 1:
        return f"it is a classifier with {metadata.cls_output_rows} labels, not a reranker, which has one"
    return _why_not_modern_bert(metadata, pooling) if arch == "modern-bert" else ""


def _why_not_modern_bert(metadata: ModelMetadata, pooling: Pooling | None) -> str:
    if metadata.format == "gguf" and not metadata.has_cls_norm:
        return "its rank head is not whole: cls.norm.weight missing (lost in conversion)"
    if metadata.format == "gguf" and metadata.has_cls_norm_bias:
        return "the normalisation in its rank head has a bias (cls.norm.bias), which llama.cpp leaves out"
    if metadata.classifier_pooling not in (None, "mean", "cls"):
        return f"its head reads the pooling {metadata.classifier_pooling!r}, which llama.cpp does not compute"
    if pooling and pooling != (metadata.classifier_pooling or "mean"):
        return (
            f"its head reads the pooling {pooling!r}, and the file does not say so: it was converted by an "
            "older llama.cpp, and llama.cpp takes the mean"
        )
    return ""
