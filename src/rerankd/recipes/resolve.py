"""A file's metadata + the catalog + the user's settings -> how the file is scored, or why it can't be.

Pure: values in, a value out that can be printed. The method is chosen first, then what each source says is
merged (`sources.py`, `partial_recipe.py`), and the result is held against the file. A model that is not known
is never given another one's recipe by its name. The rules, in order:

- **A part of a model, a damaged one, or a model the catalog refuses,** is refused; so is a checkpoint of a
  class that is not known. What the catalog refuses because of llama.cpp is scored from its own safetensors.
- **A causal model is asked for a label** (`causal_lm`), whether it has a rank head or not: most files lack it
  (llama-server's own /v1/rerank then answers about 1e-20), and where it is there it is a slower way to the
  same number. What it is asked must be known (`prompts.py`): from the user's settings, by the catalog, or
  from the file.
- **An encoder with a rank head** is scored by it, where that head is computed right (`rank_heads.py`).
- **A model without a head is an embedding model** when its header or the catalog names a pooling, and nothing
  says that it is a reranker (`model_identity.py`).
- **Anything else is refused,** with what is missing and the lines of rerankd.toml that supply it. A user's
  template and labels make a causal reranker of any causal model.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rerankd.domain import Method, Normalization, Recipe, Refusal, Source
from rerankd.errors import ConfigError
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes import prompts, rank_heads
from rerankd.recipes.catalog import Catalog, Entry, template_error
from rerankd.recipes.partial_recipe import NOTHING, POOLINGS, PartialRecipe, merge
from rerankd.recipes.prompts import Prompt
from rerankd.recipes.recipe_sources import longest, partials
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.scoring_method import OTHERS, QWEN3, SAY_PROMPT, another_file, natural
from rerankd.recipes.user_notes import notes, warnings
from rerankd.scoring.prompt import INSTRUCTION

_SMALLEST_MAX_LENGTH = 32
# Byte-level BPE vocabularies whose reference tokenizer normalises to NFC first; llama.cpp does not do it for
# them.
_NFC_TOKENIZERS = ("qwen2", "qwen35", "modern-bert")
_MARKER = re.compile(r"<\|\w+\|>")
_ONLY_FOR: dict[Method, tuple[str, ...]] = {
    "cross_encoder": (),
    "causal_lm": ("template", "labels", "instruction"),
    "embedding": ("query_prefix", "document_prefix"),
}


@dataclass(frozen=True, slots=True)
class _Case:
    """All that the rules look at. `prompt` is what is known of how a causal reranker is asked."""

    metadata: ModelMetadata
    entry: Entry | None
    catalog: Catalog
    settings: PartialRecipe
    prompt: Prompt | None


def resolve(metadata: ModelMetadata, catalog: Catalog, settings: PartialRecipe = NOTHING) -> Resolution:
    """How a file is scored, or why not.

    Raises ConfigError, naming the setting, for settings that contradict each other or the file.
    """
    entry = catalog.recognise(metadata)
    if entry is not None and entry.method == "embedding" and metadata.has_cls_output:
        entry = None  # a cross-encoder made from an embedding model, under its name
    if entry is not None and entry.method == "causal_lm" and not metadata.is_causal:
        entry = None
    if settings.method is None and (settings.template is not None or settings.labels is not None):
        settings = replace(settings, method="causal_lm")
    prompt = prompts.known(metadata, entry, catalog) if metadata.is_causal else None
    case = _Case(metadata, entry, catalog, settings, prompt)
    method = _no_model(case) or _method(case)
    outcome = method if isinstance(method, Refusal) else _recipe(case, method)
    if isinstance(outcome, Refusal):
        return Resolution(metadata.path, outcome, entry)
    told = notes(outcome, metadata, entry, prompt), warnings(outcome, entry, prompt)
    return Resolution(metadata.path, outcome, entry, *told)


def _no_model(case: _Case) -> Refusal | None:
    metadata = case.metadata
    if metadata.refusal is not None:
        return Refusal(metadata.refusal.reason, another_file(metadata, case.entry))
    if metadata.kind != "model" or metadata.architecture == "clip":
        part = "mmproj" if metadata.architecture == "clip" else metadata.kind
        return Refusal(f"it is not a whole model but a part of one ({part})", "give the model's own file")
    if not metadata.parameters:
        return Refusal("it holds no weights, only a vocabulary", "give the model's own file")
    if not metadata.vocabulary_size:
        return Refusal("it holds no vocabulary", "download a complete conversion of the model")
    if metadata.hidden_activation not in ("", "gelu", "silu"):
        return Refusal(f"its activation {metadata.hidden_activation!r} is not known", OTHERS)
    return None


def _method(case: _Case) -> Method | Refusal:
    """The scoring method: the user's, else what the file and the catalog say."""
    metadata, entry, method = case.metadata, case.entry, case.settings.method
    # What the catalog refuses is what llama.cpp computes wrong.
    if entry is not None and entry.refused and method != "causal_lm" and metadata.format == "gguf":
        return Refusal(f"this is {entry.name}: {entry.refused}", OTHERS)
    if metadata.format != "gguf" and method not in (None, "cross_encoder"):
        raise ConfigError(f"{metadata.path}: a model in safetensors is scored by its head: remove {method}")
    found = method or natural(metadata, entry, case.prompt, case.catalog)
    if metadata.format == "gguf" or isinstance(found, Refusal) or found == "cross_encoder":
        return found
    return Refusal(
        "it has no rank head, and a model in safetensors is scored by its head", another_file(metadata, entry)
    )


def _recipe(case: _Case, method: Method) -> Recipe | Refusal:
    """The merge of all sources, unless something is missing or does not fit the file."""
    _check_settings(case, method)
    merged, sources = merge(partials(case.settings, case.entry, case.metadata, case.prompt, method))
    check = {"cross_encoder": _check_head, "causal_lm": _check_causal, "embedding": _check_embedding}
    return check[method](case, merged, sources) or _complete(case, method, merged, sources)


def _check_settings(case: _Case, method: Method) -> None:
    """Raises ConfigError for a setting that is no part of how the model is scored."""
    metadata, settings = case.metadata, case.settings
    is_pooled = method == "embedding" or (
        method == "cross_encoder" and metadata.architecture == "modern-bert"
    )
    if settings.pooling is not None and not is_pooled:
        raise ConfigError(
            f"pooling is for method = embedding, and this model is scored as {method}: remove it"
        )
    for other, names in _ONLY_FOR.items():
        for name in names:
            if other != method and getattr(settings, name) is not None:
                raise ConfigError(
                    f"{name} is for method = {other}, and this model is scored as {method}: remove it"
                )


def _check_head(case: _Case, merged: PartialRecipe, sources: dict[str, Source]) -> Refusal | None:
    metadata, wanted = case.metadata, case.settings.pooling
    if metadata.is_causal:
        raise ConfigError(
            f"{metadata.path}: a causal model ({metadata.architecture}) is scored by its labels: "
            "remove method = cross_encoder"
        )
    if wanted is not None and metadata.classifier_pooling not in (None, wanted):
        raise ConfigError(
            f"{metadata.path}: its file says that its head reads the pooling "
            f"{metadata.classifier_pooling!r}: "
            "remove pooling"
        )
    read = wanted or (case.entry.classifier_pooling if case.entry is not None else None)
    is_said = metadata.classifier_pooling is not None or read is not None
    if metadata.architecture == "modern-bert" and metadata.has_cls_output and not is_said:
        return Refusal(
            "its file does not say which state its head reads, the first token's or the mean "
            "(modern-bert.classifier.pooling_type is missing): it was converted by an older llama.cpp",
            "if its config.json says classifier_pooling = mean, say so in rerankd.toml; else take a newer "
            "conversion, or serve the model from its own safetensors (rerankd pull hf:ORG/REPO)",
            'method = "cross_encoder"\n'
            'pooling = "mean"  # only if its config.json says so; rerankd 0.1 assumed it',
        )
    reason = rank_heads.why_not(metadata, read)
    return Refusal(reason, another_file(metadata, case.entry)) if reason else None


def _check_causal(case: _Case, merged: PartialRecipe, sources: dict[str, Source]) -> Refusal | None:
    metadata, template, labels = case.metadata, merged.template, merged.labels
    if not metadata.is_causal:
        raise ConfigError(
            f"{metadata.path}: causal_lm asks for a next token, and {metadata.architecture} is an "
            f"encoder, which "
            "gives none: remove template, labels and method = causal_lm"
        )
    if template is None or labels is None:
        lacks = " and ".join(n for n, v in (("template", template), ("labels", labels)) if v is None)
        return Refusal(
            f"{lacks} must be set: neither its file nor the catalog has what it is asked",
            SAY_PROMPT,
            prompts.wanted_lines(metadata, case.catalog, like_before=False),
        )
    if error := template_error(template):
        raise ConfigError(f"{metadata.path}: {error}")
    if case.settings.instruction is not None and INSTRUCTION not in template:
        raise ConfigError(
            f"{metadata.path}: the template has no {{instruction}}: add it there, or set no instruction"
        )
    if _lost_output(metadata):
        return Refusal(
            "its language model head (output.weight) was lost in conversion: llama.cpp's converter leaves it "
            "out of large Qwen3 rerankers when it writes a rank head",
            f"use a conversion without a rank head, which keeps output.weight, or {OTHERS}",
        )
    unfit = _unfit_vocabulary(metadata, "" if sources["template"] == "settings" else template, labels)
    if unfit and sources["labels"] == "settings":
        raise ConfigError(f"{metadata.path}: {unfit}; set labels that are")
    if unfit and case.entry is None:
        lines = prompts.wanted_lines(metadata, case.catalog, like_before=False)
        return Refusal(f"what its file says that it is asked does not fit it: {unfit}", SAY_PROMPT, lines)
    if unfit:
        reason = f"{unfit}: the file is not what it says it is, or damaged"
        return Refusal(reason, f"download it anew, or {OTHERS}")
    return None


def _lost_output(metadata: ModelMetadata) -> bool:
    """Whether the head that gives next tokens is gone.

    Qwen3 shares it with the embedding matrix up to 4B; from 8B on (4,096 wide) it is a tensor of its own, and
    without it llama.cpp silently takes the embedding matrix, which makes noise of the answer.
    """
    return metadata.architecture in QWEN3 and metadata.embedding_length >= 4096 and not metadata.has_output


def _unfit_vocabulary(metadata: ModelMetadata, template: str, labels: tuple[str, str]) -> str:
    """What the vocabulary lacks for the labels and a catalog template's markers; "" for nothing."""
    if labels[0] == labels[1] or not all(labels):
        return f"the labels {labels[0]!r} and {labels[1]!r} are not two different texts"
    for label in labels:
        if metadata.token_id(label) is None:
            return f"the label {label!r} is not a single token of its vocabulary"
    for marker in _MARKER.findall(template):
        if marker not in metadata.control_tokens and marker not in metadata.user_defined_tokens:
            return f"{marker} is not a special token of its vocabulary"
    return ""


def _check_embedding(case: _Case, merged: PartialRecipe, sources: dict[str, Source]) -> Refusal | None:
    said, pooling = case.metadata.pooling, merged.pooling
    if pooling not in POOLINGS:
        return Refusal(
            "an embedding model needs a pooling, and neither its header nor the catalog names it",
            f"set pooling to mean, cls or last, as its model card says, or {OTHERS}",
        )
    if case.entry is not None and sources["pooling"] == "catalog" and said in POOLINGS and said != pooling:
        return Refusal(
            f"it is called {case.entry.name}, whose pooling is {pooling}, and its file says that it has "
            f"{said}",
            "say in rerankd.toml which one is right, as its model card has it",
            f'method = "embedding"\npooling = {prompts.toml(said)}  # or {prompts.toml(pooling)}',
        )
    return None


def _complete(case: _Case, method: Method, merged: PartialRecipe, sources: dict[str, Source]) -> Recipe:
    """The recipe of all that was merged, without what it has no place for."""
    metadata, length = case.metadata, merged.max_length
    assert length is not None, "the method has a default"
    most = longest(metadata, case.entry)
    if sources["max_length"] == "settings" and not _SMALLEST_MAX_LENGTH <= length <= most:
        raise ConfigError(
            f"{metadata.path}: max_length = {length} must be from {_SMALLEST_MAX_LENGTH} to {most}, "
            f"the tokens "
            "that the model can read"
        )
    normalization = _normalization(case.settings, method, merged)
    unused = {"low", "high"} if normalization.name != "affine" else set()
    if INSTRUCTION not in (merged.template or ""):
        unused.add("instruction")
    # SentencePiece's maps compose as well, but only marks in the order of Unicode, and not all sequences.
    is_unigram = metadata.tokenizer_model == "t5" and metadata.has_charsmap
    return Recipe(
        method=method,
        max_length=length,
        normalization=normalization,
        pooling=merged.pooling or "none",
        query_prefix=merged.query_prefix or "",
        document_prefix=merged.document_prefix or "",
        template=merged.template or "",
        instruction=(merged.instruction or "") if "instruction" not in unused else "",
        labels=merged.labels or ("", ""),
        nfc=is_unigram or metadata.tokenizer_pre in _NFC_TOKENIZERS,
        sources={part: source for part, source in sources.items() if part not in unused},
    )


def _normalization(settings: PartialRecipe, method: Method, merged: PartialRecipe) -> Normalization:
    name, low, high = merged.normalization, merged.low, merged.high
    assert name is not None and low is not None and high is not None, "the method has a default"
    if method == "embedding" and name == "sigmoid":
        raise ConfigError(
            "normalization = sigmoid squeezes a cosine into 0.27…0.73: use affine with low and high"
        )
    if name != "affine":
        if settings.low is not None or settings.high is not None:
            raise ConfigError(f"low and high are for normalization = affine, and this model's is {name}")
        return Normalization(name)
    if not low < high:
        raise ConfigError(f"low = {low} must be less than high = {high}")
    return Normalization("affine", low, high)
