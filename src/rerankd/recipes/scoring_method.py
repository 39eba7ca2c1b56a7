"""(pure) The scoring method of a file, from its own metadata and the catalog, or why it is not known."""

from __future__ import annotations

from rerankd.domain import Method, Refusal
from rerankd.formats.metadata import ModelMetadata
from rerankd.formats.safetensors import TAKE_GGUF
from rerankd.recipes import prompts
from rerankd.recipes.catalog import Catalog, Entry
from rerankd.recipes.model_identity import Kind, is_called_embedder, kind_of
from rerankd.recipes.partial_recipe import POOLINGS
from rerankd.recipes.prompts import Prompt

QWEN3 = ("qwen3", "qwen3vl")
OTHERS = "use a model known to work, such as bge-reranker-v2-m3 or Qwen3-Reranker-0.6B"
SAY_PROMPT = f"say in rerankd.toml what it is asked, as its model card has it, or {OTHERS}"
_SAY_POOLING = f"if it is an embedding model, say so in rerankd.toml; else {OTHERS}"
# Encoders whose converter (LlamaBidirectionalModel) makes the same file of embedding models and of rerankers.
_EITHER = ("llama", "llama-embed")
_LOST_HEAD = (
    "it is called a reranker and has no rank head (cls.weight and cls.output.weight missing): the head was "
    "lost in conversion, or is of a kind that a GGUF file can't hold"
)
_NOT_DONE = {
    "listwise": "it is a listwise model (it has the marker tokens of jina-reranker-v3): it reads all "
    "documents in one prompt and compares hidden states of those tokens, which rerankd does not do yet",
    "late interaction": "it is a late interaction model (ColBERT): it compares each token of a query with "
    "each of a document, which rerankd does not do yet; one vector for each text gives other scores",
    "sparse": "it is a sparse model (SPLADE): its score comes from weights of words, which its language "
    "model head gives and rerankd does not compute; one vector for each text gives other scores",
}


def natural(
    metadata: ModelMetadata, entry: Entry | None, prompt: Prompt | None, catalog: Catalog
) -> Method | Refusal:
    """The scoring method of a file for which the user sets none. `prompt` is what is known of how a causal
    model is asked."""
    kind = kind_of(metadata)
    if metadata.is_causal:
        return _causal(metadata, entry, prompt, catalog, kind)
    headed = metadata.has_cls or metadata.has_cls_output or metadata.pooling == "rank"
    if headed or (entry is not None and entry.method == "cross_encoder"):
        return "cross_encoder"
    if kind is not None:
        return _headless(metadata, entry, kind)
    if entry is not None and entry.method:
        return entry.method
    if metadata.pooling not in POOLINGS:
        return Refusal(
            f"it is a {metadata.architecture} encoder with no rank head, and its header names no pooling",
            "if it was a reranker, its head was lost in conversion, and another file is needed; if it is an "
            "embedding model, say so in rerankd.toml, with the pooling that its model card names",
            _cosine_lines(""),
        )
    if metadata.architecture == "gemma-embedding" and not metadata.has_dense:
        return Refusal(
            "it is an EmbeddingGemma without its two dense layers (dense_2.weight and dense_3.weight "
            "missing): it was converted without them, and gives other cosines than the model",
            f"take a conversion that has them, or {OTHERS}",
            _cosine_lines(metadata.pooling),
        )
    if metadata.architecture in _EITHER and not is_called_embedder(metadata):
        return Refusal(
            f"it is a {metadata.architecture} encoder without a rank head, and nothing in it says whether it "
            "is an embedding model, or a reranker such as llama-nemotron-rerank whose head was lost in "
            "conversion",
            _SAY_POOLING,
            _cosine_lines(metadata.pooling),
        )
    return "embedding"


def _causal(
    metadata: ModelMetadata, entry: Entry | None, prompt: Prompt | None, catalog: Catalog, kind: Kind | None
) -> Method | Refusal:
    if kind in ("listwise", "late interaction", "sparse"):
        return _headless(metadata, entry, kind)
    if prompt is not None:
        return "causal_lm"
    if kind == "reranker" or metadata.has_cls_output:
        return Refusal(
            f"it is a {metadata.architecture} reranker that the catalog does not know, and its file does not "
            f"say what it is asked: {_missing_of_prompt(metadata)}",
            SAY_PROMPT,
            prompts.wanted_lines(metadata, catalog, like_before=metadata.architecture in QWEN3),
        )
    if entry is not None and entry.method:
        return entry.method
    if metadata.pooling in POOLINGS:
        return "embedding"
    return Refusal(
        "it is a plain language model (chat or base), not trained to score documents",
        SAY_PROMPT,
        prompts.wanted_lines(metadata, catalog, like_before=False),
    )


def _missing_of_prompt(metadata: ModelMetadata) -> str:
    """What of a causal reranker's prompt the file does not say."""
    lacks = []
    if not metadata.rerank_template:
        lacks.append("the prompt it was trained on (tokenizer.chat_template.rerank)")
    elif error := prompts.own_template_error(metadata.rerank_template):
        lacks.append(f"a rerank template that can be filled in ({error})")
    elif metadata.architecture == "qwen3vl":
        lacks.append("its own prompt (the template in the file is the text model's)")
    if prompts.labels_of(metadata) is None:
        lacks.append(
            "two labels that are tokens of its vocabulary, the relevant one first (classifier.output_labels)"
        )
    return " and ".join(lacks) + (" are missing" if len(lacks) > 1 else " is missing")


def _headless(metadata: ModelMetadata, entry: Entry | None, kind: Kind) -> Refusal:
    """The refusal of a file that calls itself a reranker and lacks the part that scores."""
    if kind == "reranker":
        reason, next_step = _LOST_HEAD, another_file(metadata, entry)
    else:
        reason, next_step = _NOT_DONE[kind], OTHERS
    pooling = metadata.pooling if metadata.pooling in POOLINGS else ""
    return Refusal(reason, next_step, "" if kind == "listwise" else _cosine_lines(pooling))


def _cosine_lines(pooling: str) -> str:
    """The lines that make an embedding model of an encoder."""
    return (
        'method = "embedding"  # only if it is an embedding model; rerankd 0.1 assumed it\n'
        f"pooling = {prompts.toml(pooling)}  # mean, cls or last, as its model card says"
    )


def another_file(metadata: ModelMetadata, entry: Entry | None) -> str:
    """What to do where a conversion can't score right, and the model itself can."""
    if metadata.cls_output_rows > 1:
        return OTHERS
    if entry is not None and entry.refs:
        return f"pull the model as rerankd knows it: rerankd pull {entry.name.lower()}"
    if metadata.refusal is not None:
        return f"{metadata.refusal.next_step}, or {OTHERS}"
    if metadata.format == "safetensors":
        return f"{TAKE_GGUF}, or {OTHERS}"
    if metadata.architecture in ("bert", "modern-bert"):
        return f"serve the model from its own safetensors (rerankd pull hf:ORG/REPO), or {OTHERS}"
    return OTHERS
