"""Resolve a model file to its recipe, or to the refusal that says why it can't be scored correctly.

The inputs are the file's metadata, the catalog and the user's settings. Pure: the result is a value that can
be printed. `resolve` first chooses the method (`scoring_method.py`), then merges what each source defines
(`recipe_sources.py`, `partial_recipe.py`), and finally checks the result against the file. An unknown model
never gets the recipe of another model because of a similar name. The rules, in order:

- **Refused at once**: a part of a model, a damaged file, a checkpoint of an unknown class, and a model that
  the catalog refuses. Most of the catalog's refusals concern llama.cpp; from its original safetensors files,
  such a model is scored.
- **A causal language model** is scored by the logits of one or two labels (`causal_lm`), with or without a
  rank head. Most files lack the head, and llama-server's own /v1/rerank then returns about 1e-20; where the
  head exists, it yields the same score more slowly. The prompt must be known (`prompts.py`): from the
  user's settings, the catalog, or the file.
- **An encoder with a rank head** is scored by this head if the engine computes it correctly
  (`rank_heads.py`).
- **A model without a head** is an embedding model if its header or the catalog defines a pooling and nothing
  marks it as a reranker (`model_identity.py`).
- **Everything else** is refused, with what is missing and the settings that supply it. With a template and
  labels in the settings, any causal language model is a reranker.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rerankd.domain import Method, Recipe, Refusal, Source
from rerankd.errors import ConfigError
from rerankd.formats.metadata import ModelMetadata
from rerankd.recipes import embedding, late_interaction, listwise, prompts, rank_heads
from rerankd.recipes.catalog import Catalog, Entry, template_error
from rerankd.recipes.causal_files import lost_output, unfit_vocabulary
from rerankd.recipes.causal_layout import causal_recipe, layout_prompt
from rerankd.recipes.model_identity import has_causal_head
from rerankd.recipes.normalizations import normalization_of
from rerankd.recipes.partial_recipe import NOTHING, PartialRecipe, merge
from rerankd.recipes.prompts import Prompt
from rerankd.recipes.recipe_sources import longest, partials
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.scoring_method import (
    KNOWN_GOOD,
    SET_PROMPT,
    infer_method,
    own_method,
    suggest_another_file,
)
from rerankd.recipes.unusable_files import unusable
from rerankd.recipes.user_notes import notes, warnings
from rerankd.scoring.prompt import INSTRUCTION

_SMALLEST_MAX_LENGTH = 32
# Byte-level BPE vocabularies whose reference tokenizer normalizes to NFC first; llama.cpp does not.
_NFC_TOKENIZERS = ("qwen2", "qwen35", "modern-bert")
_ONLY_FOR: dict[Method, tuple[str, ...]] = {
    "cross_encoder": (),
    "causal_lm": ("template", "labels", "instruction"),
    "embedding": ("query_prefix", "document_prefix"),
    "late_interaction": ("query_prefix", "document_prefix", *late_interaction.PARTS),
    "listwise": (),
}


@dataclass(frozen=True, slots=True)
class _Case:
    """The input of the rules. `prompt` is the known prompt of a causal reranker."""

    metadata: ModelMetadata
    entry: Entry | None
    catalog: Catalog
    settings: PartialRecipe
    prompt: Prompt | None


def resolve(metadata: ModelMetadata, catalog: Catalog, settings: PartialRecipe = NOTHING) -> Resolution:
    """The recipe of a model file, or why it is refused.

    Raises ConfigError for settings that contradict each other or the file; the message names the setting.
    """
    entry = catalog.recognise(metadata)
    if entry is not None and entry.method == "embedding" and metadata.has_cls_output:
        entry = None  # a cross-encoder that was trained from an embedding model and kept its name
    if entry is not None and entry.method == "causal_lm" and not metadata.is_causal:
        entry = None
    if settings.method is None and (settings.template is not None or settings.labels is not None):
        settings = replace(settings, method="causal_lm")
    prompt = None
    if metadata.is_causal:
        # What a checkpoint's own files declare is more exact than what its name suggests.
        prompt = layout_prompt(metadata) or prompts.find_prompt(metadata, entry, catalog)
    if has_causal_head(metadata):
        if settings.labels is not None:
            raise ConfigError(f"{metadata.path}: it is scored by its rank head. Remove labels.")
        if prompt is not None:
            prompt = replace(prompt, catalog=replace(prompt.catalog, labels=None))
    case = _Case(metadata, entry, catalog, settings, prompt)
    method = unusable(case.metadata, case.entry, settings) or _method(case)
    outcome = method if isinstance(method, Refusal) else _recipe(case, method)
    if isinstance(outcome, Refusal):
        return Resolution(metadata.path, outcome, entry)
    comments = notes(outcome, metadata, entry, prompt), warnings(outcome, entry, prompt)
    return Resolution(metadata.path, outcome, entry, *comments)


def _method(case: _Case) -> Method | Refusal:
    """The scoring method: from the settings, else inferred from the file and the catalog."""
    metadata, entry, method = case.metadata, case.entry, case.settings.method
    own = own_method(metadata)
    if metadata.format != "gguf" and method not in (None, own):
        of_tokens = dict.fromkeys(("late_interaction", "listwise"), "the vectors of its tokens")
        how = {"causal_lm": "the logits of its labels", **of_tokens}.get(own, "its rank head")
        raise ConfigError(
            f"{metadata.path}: a model in safetensors format is always scored by {how}. "
            f"Remove method = {method}."
        )
    if method is None and isinstance(declared := causal_recipe(metadata), str):
        return Refusal(declared, SET_PROMPT)
    found = method or infer_method(metadata, entry, case.prompt, case.catalog)
    if metadata.format == "gguf" or isinstance(found, Refusal) or found in (own, "listwise"):
        return found
    return Refusal(
        "it has no rank head, and rerankd scores a model in safetensors format by its rank head only",
        suggest_another_file(metadata, entry),
    )


def _recipe(case: _Case, method: Method) -> Recipe | Refusal:
    """The recipe merged from all sources, or a refusal if a part is missing or does not fit the file."""
    _check_settings(case, method)
    merged, sources = merge(partials(case.settings, case.entry, case.metadata, case.prompt, method))
    missing = _missing(case, method, merged, sources)
    return missing or _complete(case, method, merged, sources)


def _missing(
    case: _Case, method: Method, merged: PartialRecipe, sources: dict[str, Source]
) -> Refusal | None:
    """The refusal if a part is missing or does not fit the file."""
    if method == "cross_encoder":
        return _check_head(case, merged)
    if method == "causal_lm":
        return _check_causal(case, merged, sources)
    if method == "late_interaction":
        return late_interaction.missing(case.metadata, merged)
    if method == "listwise":
        return listwise.missing(case.metadata, case.entry)
    return embedding.missing(case.metadata, case.entry, merged, sources)


def _check_settings(case: _Case, method: Method) -> None:
    """Raise ConfigError for a setting that this method does not use."""
    unused = [
        (name, other) for other, names in _ONLY_FOR.items() for name in names if name not in _ONLY_FOR[method]
    ]
    has_pooling_head = method == "cross_encoder" and case.metadata.architecture == "modern-bert"
    if method != "embedding" and not has_pooling_head:
        unused.insert(0, ("pooling", "embedding"))
    for name, other in unused:
        if getattr(case.settings, name) is not None:
            raise ConfigError(
                f"{name} is for method = {other}, but this model is scored as {method}. Remove {name}."
            )


def _check_head(case: _Case, merged: PartialRecipe) -> Refusal | None:
    metadata, wanted = case.metadata, case.settings.pooling
    if metadata.is_causal:
        raise ConfigError(
            f"{metadata.path}: {metadata.architecture} is a causal language model, which is scored by the "
            "logits of its labels. Remove method = cross_encoder."
        )
    if wanted is not None and metadata.classifier_pooling not in (None, wanted):
        raise ConfigError(
            f"{metadata.path}: pooling = {wanted} contradicts the file, which declares that its rank head "
            f"reads the pooling {metadata.classifier_pooling!r}. Remove pooling."
        )
    read = wanted or (case.entry.classifier_pooling if case.entry is not None else None)
    is_known = metadata.classifier_pooling is not None or read is not None
    if metadata.architecture == "modern-bert" and metadata.has_cls_output and not is_known:
        return Refusal(
            "the file does not declare whether its rank head reads the first token's state or the mean of "
            "all (modern-bert.classifier.pooling_type is missing, because an older llama.cpp converted the "
            "file)",
            "if the model's config.json has classifier_pooling = mean, set method and pooling in "
            "rerankd.toml; otherwise use a newer conversion, or serve the model from its original "
            "safetensors files (`rerankd pull hf:ORG/REPO`)",
            'method = "cross_encoder"\n'
            'pooling = "mean"  # only if its config.json says so (rerankd 0.1 assumed it)',
        )
    if metadata.architecture in rank_heads.OF_PROMPTS and not merged.template:
        return Refusal(
            "its head reads a prompt, and neither the file nor the catalog defines it",
            f"if it is llama-nemotron-rerank-1b-v2, {_named(metadata)}; else {KNOWN_GOOD}",
        )
    declared = (case.settings.method, case.entry.method if case.entry is not None else None)
    reason = rank_heads.why_not(metadata, read, is_reranker="cross_encoder" in declared)
    next_step = rank_heads.put_beside(metadata) + suggest_another_file(metadata, case.entry)
    return Refusal(reason, next_step) if reason else None


def _named(metadata: ModelMetadata) -> str:
    """How a file gets the name by which the catalog finds its prompt."""
    if metadata.format == "gguf":
        return "use a conversion whose header names it (general.name)"
    return "give its folder that name"


def _check_causal(case: _Case, merged: PartialRecipe, sources: dict[str, Source]) -> Refusal | None:
    metadata, template, labels = case.metadata, merged.template, merged.labels
    if not metadata.is_causal:
        raise ConfigError(
            f"{metadata.path}: {metadata.architecture} is an encoder, and causal_lm needs a model that "
            "predicts the next token. Remove template, labels and method = causal_lm."
        )
    if template is None or labels is None:
        missing = " and ".join(n for n, v in (("template", template), ("labels", labels)) if v is None)
        return Refusal(
            f"{missing} must be set: neither the file nor the catalog defines the whole prompt",
            SET_PROMPT,
            prompts.settings_lines(metadata, case.catalog, with_old_default=False),
        )
    if error := template_error(template):
        raise ConfigError(f"{metadata.path}: {error}")
    if case.settings.instruction is not None and INSTRUCTION not in template:
        raise ConfigError(
            f"{metadata.path}: instruction is set, but the template has no {{instruction}}. Add the "
            "placeholder to the template, or remove instruction."
        )
    if lost_output(metadata):
        return Refusal(
            "its language model head (output.weight) was lost in conversion: llama.cpp's converter omits it "
            "for large Qwen3 rerankers when it writes a rank head",
            f"use a conversion without a rank head, which keeps output.weight, or {KNOWN_GOOD}",
        )
    unfit = unfit_vocabulary(metadata, "" if sources["template"] == "settings" else template, labels)
    if unfit and sources["labels"] == "settings":
        raise ConfigError(f"{metadata.path}: {unfit}. Set one single token or two different ones as labels.")
    if unfit and case.entry is None:
        lines = prompts.settings_lines(metadata, case.catalog, with_old_default=False)
        reason = f"the prompt that the file defines does not fit its vocabulary: {unfit}"
        return Refusal(reason, SET_PROMPT, lines)
    if unfit:
        reason = f"{unfit}: the file is damaged, or not the model that its header names"
        return Refusal(reason, f"download it again, or {KNOWN_GOOD}")
    return None


def _complete(case: _Case, method: Method, merged: PartialRecipe, sources: dict[str, Source]) -> Recipe:
    """The recipe from the merged parts, without those that the method does not use."""
    metadata, most = case.metadata, longest(case.metadata, case.entry)
    length = merged.max_length or most
    if sources["max_length"] == "settings" and not _SMALLEST_MAX_LENGTH <= length <= most:
        raise ConfigError(
            f"{metadata.path}: max_length = {length} must be from {_SMALLEST_MAX_LENGTH} to {most}, "
            "the most tokens that the model can read"
        )
    normalization = normalization_of(case.settings, method, merged)
    unused = {
        *(("low", "high") if normalization.name != "affine" else ()),
        *(("logit_mean", "logit_sigma") if normalization.name != "sigmoid" else ()),
        *(("image_tokens",) if metadata.image_processor is None else ()),
    }
    if INSTRUCTION not in (merged.template or ""):
        unused.add("instruction")
    # SentencePiece's maps compose too, but only marks in canonical order, and not all sequences.
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
        labels=("", "") if merged.labels is None else merged.labels,
        nfc=is_unigram or metadata.tokenizer_pre in _NFC_TOKENIZERS,
        interaction=late_interaction.interaction_of(metadata, merged)
        if method == "late_interaction"
        else None,
        images=metadata.image_processor.input(merged.image_tokens) if metadata.image_processor else None,
        **(listwise.facts(case.entry) if method == "listwise" else {}),
        sources={
            **{part: source for part, source in sources.items() if part not in unused},
            **(listwise.SOURCES if method == "listwise" else {}),
        },
    )
