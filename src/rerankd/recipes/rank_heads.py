"""(pure) Check whether an engine computes an encoder's rank head correctly, or explain why it does not.

For a GGUF file, llama.cpp computes the rank score as follows (`build_pooling`, build b11434; the converter
writes files for it): tanh(cls · h + b) of the first token's state h, then `cls.output · h + b`, each step
only if the file has its tensor. For ModernBERT: gelu and `cls.norm` instead of tanh, and the mean of all
states unless the file declares cls. These are the heads of RoBERTa, XLM-R, NeoBERT and ModernBERT. They
differ from the heads of BERT (the converter drops its `pooler.dense`, and both texts get token type 0),
DistilBERT (it has a ReLU) and jina-bert-v2 (its pooler is dropped too, so the tanh is applied to the single
logit).
"""

from __future__ import annotations

from rerankd.domain import Pooling
from rerankd.formats import head_file
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes.model_identity import is_called_reranker

_HEADED = ("bert", "modern-bert", "neo-bert")
# Whose heads the OpenVINO backend computes. What a checkpoint's class needs was checked when it was read.
_HEADED_CHECKPOINTS = ("bert", "deberta-v2", "llama-embed", "modern-bert", "new")
OF_PROMPTS = ("llama", "llama-embed")
"""Architectures whose rank head is one row, for the states of a prompt."""
_TWO_LABELS = (
    "it is a classifier with two labels, and neither its name nor the catalog says that it is a reranker (if "
    'its second label means "relevant", set method = "cross_encoder")'
)


def put_beside(metadata: ModelMetadata) -> str:
    """The next step for a file whose head may be a file beside it, as the beginning of a sentence."""
    if metadata.architecture not in OF_PROMPTS or metadata.format != "gguf" or metadata.has_cls_output:
        return ""
    (row,) = head_file.tensors_of(metadata.architecture)
    return (
        f"put {row} of the original model into the file {head_file.NAMES[0]} beside it (docs/models.md, "
        '"A head beside a GGUF file"), or '
    )


def why_not(metadata: ModelMetadata, pooling: Pooling | None = None, *, is_reranker: bool = False) -> str:
    """Why the engine's rank score of this encoder would not be the model's own, "" if it is.

    `pooling` is the pooling that a ModernBERT's head is known to read, None if only the file defines it.
    `is_reranker` states whether the user or the catalog declares the model to be a reranker: of a head with
    two labels, the second one then means "relevant".
    """
    if metadata.library:
        return ""  # its library computes it
    if metadata.layout is not None and metadata.layout.has_own_head:
        return ""  # made of modules, each of which is understood (formats/module_head.py)
    arch = metadata.architecture
    if metadata.decision_blocks:
        return "it is a decision model, which chooses among answers and does not score documents"
    if metadata.layout is not None and metadata.layout.has_own_head:
        return ""  # rerankd supports each of its modules (formats/module_head.py)
    if metadata.format != "gguf":
        return _why_not_checkpoint(metadata, pooling, is_reranker=is_reranker)
    if arch == "jina-bert-v2":
        return (
            "llama.cpp's score differs from that of a jina-bert-v2 reranker: its converter drops the pooler "
            "(pooler.dense), and its graph applies tanh to the single logit"
        )
    if arch in OF_PROMPTS:
        return _why_not_row(metadata)
    if arch not in _HEADED:
        return f"llama.cpp has no rank head for {arch}"
    if arch == "bert" and metadata.token_type_count > 1:
        pooler = "" if metadata.has_cls else ", and the converter drops its pooler (pooler.dense)"
        return (
            "it is a BERT cross-encoder with two token types, like the ms-marco-MiniLM family: llama.cpp "
            f"gives both texts token type 0{pooler}, so even the order of documents changes"
        )
    if missing := _missing(metadata):
        return missing
    if arch == "bert" and metadata.tokenizer_model == "bert":
        return (
            "it is a DistilBERT or BERT cross-encoder: llama.cpp applies tanh where its head has another "
            "function"
        )
    if metadata.cls_output_rows != 1:
        return f"it is a classifier with {metadata.cls_output_rows} labels; a reranker has one"
    return _why_not_modern_bert(metadata, pooling) if arch == "modern-bert" else ""


def _why_not_row(metadata: ModelMetadata) -> str:
    """Why the head beside a GGUF file, which is one row, can't be applied."""
    if not metadata.has_cls_output:
        (row,) = head_file.tensors_of(metadata.architecture)
        return (
            f"its rank head is missing: GGUF's converter drops {row}, the row that turns states into a score"
        )
    if metadata.cls_output_rows > 1:
        return f"its rank head has {metadata.cls_output_rows} rows, where a score needs one"
    if metadata.pooling not in (None, "none", "mean"):
        return (
            f"its head reads the mean of all states, but the file declares the pooling {metadata.pooling!r}"
        )
    return ""


def _why_not_checkpoint(metadata: ModelMetadata, pooling: Pooling | None, *, is_reranker: bool) -> str:
    if metadata.architecture not in _HEADED_CHECKPOINTS:
        return f"rerankd computes no rank head for {metadata.architecture}"
    if missing := _missing(metadata):
        return missing
    if metadata.cls_output_rows == 2 and not is_reranker and not is_called_reranker(metadata):
        return _TWO_LABELS
    if metadata.cls_output_rows not in (1, 2):
        return f"it is a classifier with {metadata.cls_output_rows} labels; a reranker has one"
    return _other_pooling(metadata, pooling) if metadata.architecture == "modern-bert" else ""


def _missing(metadata: ModelMetadata) -> str:
    parts = (("cls.weight", metadata.has_cls), ("cls.output.weight", metadata.has_cls_output))
    missing = [name for name, there in parts if not there]
    if metadata.architecture in OF_PROMPTS and metadata.has_cls_output:
        missing = []
    if not missing:
        return ""
    are = "is" if len(missing) == 1 else "are"
    return f"its rank head is incomplete: {' and '.join(missing)} {are} missing (lost in conversion)"


def _why_not_modern_bert(metadata: ModelMetadata, pooling: Pooling | None) -> str:
    if not metadata.has_cls_norm:
        return "its rank head is incomplete: cls.norm.weight is missing (lost in conversion)"
    if metadata.has_cls_norm_bias:
        return "the normalization layer of its rank head has a bias (cls.norm.bias), which llama.cpp omits"
    if metadata.classifier_pooling not in (None, "mean", "cls"):
        return (
            f"its rank head reads the pooling {metadata.classifier_pooling!r}, which llama.cpp does not "
            "compute"
        )
    return _other_pooling(metadata, pooling)


def _other_pooling(metadata: ModelMetadata, pooling: Pooling | None) -> str:
    if pooling and pooling != (metadata.classifier_pooling or "mean"):
        declared = (
            f"the file declares {metadata.classifier_pooling!r}"
            if metadata.classifier_pooling
            else "the file, which an older llama.cpp converted, does not declare it, and llama.cpp would use "
            "the mean"
        )
        return f"its rank head reads the pooling {pooling!r}, but {declared}"
    return ""
