"""(pure) Infer the scoring method of a model file, or explain the refusal: what is missing and what to do."""

from __future__ import annotations

from rerankd.domain import Method, Refusal
from rerankd.formats.metadata import ModelMetadata
from rerankd.formats.safetensors import TAKE_GGUF
from rerankd.recipes import prompts
from rerankd.recipes.catalog import Catalog, Entry
from rerankd.recipes.model_identity import Kind, is_called_embedder, kind_of
from rerankd.recipes.partial_recipe import POOLINGS
from rerankd.recipes.prompts import Prompt
from rerankd.toml_values import toml

# Architectures that llama.cpp does not support, so that a GGUF file of the model would not help.
_NOT_IN_GGUF = ("deberta-v2", "new")
QWEN3 = ("qwen3", "qwen3vl")
KNOWN_GOOD = "use a model known to work, such as bge-reranker-v2-m3 or Qwen3-Reranker-0.6B"
SET_PROMPT = f"set template and labels in rerankd.toml, as its model card states them, or {KNOWN_GOOD}"
_SET_EMBEDDING = (
    f"if it is an embedding model, set method = embedding in rerankd.toml; otherwise {KNOWN_GOOD}"
)
# Encoders whose converter (LlamaBidirectionalModel) writes embedding models and rerankers alike.
_AMBIGUOUS = ("llama", "llama-embed")
_LOST_HEAD = (
    "the file is marked as a reranker (by its name, its tags or its header) but has no rank head (cls.weight "
    "and cls.output.weight are missing): the head was lost in conversion, or GGUF can't represent it"
)
_NOT_SUPPORTED = {
    "late interaction": "it is a late interaction model (ColBERT), which rerankd scores from safetensors "
    "only: a GGUF file has lost its projection, or the markers and lengths of its texts; one vector per "
    "text gives other scores",
    "sparse": "it is a sparse model (SPLADE): its score is computed from word weights, which its language "
    "model head returns and rerankd does not read; one vector per text gives other scores",
}


def own_method(metadata: ModelMetadata) -> Method:
    """The only method by which rerankd scores a checkpoint in safetensors format."""
    if metadata.layout is not None and metadata.layout.interaction is not None:
        return "late_interaction"
    if kind_of(metadata) == "listwise":
        return "listwise"
    return "causal_lm" if metadata.is_causal else "cross_encoder"


def infer_method(
    metadata: ModelMetadata, entry: Entry | None, prompt: Prompt | None, catalog: Catalog
) -> Method | Refusal:
    """The scoring method of a file if the settings have none. `prompt` is a causal model's prompt, None if it
    is unknown."""
    kind = kind_of(metadata)
    if (own := own_method(metadata)) in ("late_interaction", "listwise"):
        return own
    if entry is not None and entry.method == "listwise":
        return "listwise"  # without its markers, which is explained later
    if metadata.is_causal:
        return _causal(metadata, entry, prompt, catalog, kind)
    has_head = metadata.has_cls or metadata.has_cls_output or metadata.pooling == "rank"
    if has_head or (entry is not None and entry.method == "cross_encoder"):
        return "cross_encoder"
    if kind is not None:
        return _headless(metadata, entry, kind)
    if entry is not None and entry.method:
        return entry.method
    if metadata.pooling not in POOLINGS:
        return Refusal(
            f"it is a {metadata.architecture} encoder without a rank head, and its header declares no "
            "pooling",
            "if it is an embedding model, set method = embedding and the pooling that its model card "
            "states in rerankd.toml; if it is a reranker, its head was lost in conversion: use another "
            "conversion of it",
            _embedding_lines(""),
        )
    if metadata.architecture == "gemma-embedding" and not metadata.has_dense:
        return Refusal(
            "it is an EmbeddingGemma without its two dense layers (dense_2.weight and dense_3.weight are "
            "missing), so its cosines would not be the model's",
            f"use a conversion that has both layers, or {KNOWN_GOOD}",
            _embedding_lines(metadata.pooling),
        )
    if metadata.architecture in _AMBIGUOUS and not is_called_embedder(metadata):
        return Refusal(
            f"it is a {metadata.architecture} encoder without a rank head, and nothing in the file tells "
            "whether it is an embedding model, or a reranker such as llama-nemotron-rerank whose head was "
            "lost in conversion",
            _SET_EMBEDDING,
            _embedding_lines(metadata.pooling),
        )
    return "embedding"


def _causal(
    metadata: ModelMetadata, entry: Entry | None, prompt: Prompt | None, catalog: Catalog, kind: Kind | None
) -> Method | Refusal:
    if kind in ("late interaction", "sparse"):
        return _headless(metadata, entry, kind)
    if prompt is not None:
        return "causal_lm"
    if kind == "reranker" or metadata.has_cls_output:
        return Refusal(
            f"it is a {metadata.architecture} reranker that is not in the catalog, and its file does not "
            f"fully define its prompt: {_missing_of_prompt(metadata)}",
            SET_PROMPT,
            prompts.settings_lines(metadata, catalog, with_old_default=metadata.architecture in QWEN3),
        )
    if entry is not None and entry.method:
        return entry.method
    if metadata.pooling in POOLINGS:
        return "embedding"
    return Refusal(
        "it is a plain language model (chat or base), not trained to score documents",
        SET_PROMPT,
        prompts.settings_lines(metadata, catalog, with_old_default=False),
    )


def _missing_of_prompt(metadata: ModelMetadata) -> str:
    """The parts of a causal reranker's prompt that the file does not define."""
    missing, verb = [], "is"
    if not prompts.own_prompt(metadata)[0]:
        missing.append("the prompt it was trained on (tokenizer.chat_template.rerank)")
    elif error := prompts.own_template_error(metadata):
        missing.append(f"a usable rerank template ({error})")
    elif metadata.architecture == "qwen3vl":
        missing.append("its own prompt (the template in the file is that of the text model)")
    if prompts.labels_of(metadata) is None:
        verb = "are"
        missing.append(
            "two labels that are single tokens of the vocabulary, relevant first (classifier.output_labels)"
        )
    return f"{' and '.join(missing)} {verb} missing"


def _headless(metadata: ModelMetadata, entry: Entry | None, kind: Kind) -> Refusal:
    """The refusal of a file of this kind, which lacks a rank head that rerankd could use."""
    if kind == "reranker":
        reason, next_step = _LOST_HEAD, suggest_another_file(metadata, entry)
    else:
        reason, next_step = _NOT_SUPPORTED[kind], KNOWN_GOOD
    if kind == "late interaction" and metadata.format == "gguf":
        next_step = f"serve the original safetensors files (`rerankd pull hf:ORG/REPO`), or {KNOWN_GOOD}"
    pooling = metadata.pooling if metadata.pooling in POOLINGS else ""
    return Refusal(reason, next_step, _embedding_lines(pooling))


def _embedding_lines(pooling: str) -> str:
    """The settings that serve an encoder as an embedding model."""
    return (
        'method = "embedding"  # only if it is an embedding model (rerankd 0.1 assumed it)\n'
        f"pooling = {toml(pooling)}  # mean, cls or last, as its model card states"
    )


def suggest_another_file(metadata: ModelMetadata, entry: Entry | None) -> str:
    """The next step if this file can't be scored correctly, but another file of the model may be."""
    if metadata.cls_output_rows > 1:
        return KNOWN_GOOD
    if entry is not None and entry.refs:
        return f"run `rerankd pull {entry.name.lower()}`, which downloads a file that rerankd can score"
    if metadata.architecture in _NOT_IN_GGUF:
        return KNOWN_GOOD
    if metadata.refusal is not None:
        return f"{metadata.refusal.next_step}, or {KNOWN_GOOD}"
    if metadata.format == "safetensors":
        return f"{TAKE_GGUF}, or {KNOWN_GOOD}"
    if metadata.architecture in ("bert", "modern-bert"):
        return (
            "serve the model from its original safetensors files (`rerankd pull hf:ORG/REPO`), or "
            f"{KNOWN_GOOD}"
        )
    return KNOWN_GOOD
