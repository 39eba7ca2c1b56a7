"""Descriptions for `rerankd inspect` and `show`: a model file and its recipe or refusal, as text and JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rerankd.deprecated_names import old_value
from rerankd.domain import Recipe, Refusal
from rerankd.formats.metadata import ModelMetadata
from rerankd.progress import size_words
from rerankd.recipes.causal_layout import CausalRecipe, causal_recipe
from rerankd.recipes.explanation import explain
from rerankd.recipes.recipe_section import part_of
from rerankd.recipes.resolution import Resolution

_WIDEST = 80  # characters of a template in the text; the JSON has all of it
# Fields of many thousand characters, and fields that only the engine needs.
_LEFT_OUT = (
    "tokens",
    "control_tokens",
    "user_defined_tokens",
    "chat_template",
    "path",
    "parts",
    "refusal",
    "layout",
    "output_matrix",
)


def describe(metadata: ModelMetadata, resolved: Resolution, ref: str = "", place: str = "") -> str:
    """Describe a model file in a few lines: its contents, and its recipe with the source of each part, or its
    refusal. `ref` is the user's name for it, `place` where it is if that is not its path."""
    lines = [place or str(metadata.path), _file_line(metadata), _model_line(metadata, resolved)]
    if metadata.layout is not None and metadata.layout.modules:
        lines.append(f"modules of sentence-transformers: {', '.join(metadata.layout.kinds)}")
    if isinstance(resolved.outcome, Refusal):
        lines.append(f"refused: {resolved.outcome.reason}")
        lines.append(f"next step: {resolved.outcome.next_step}")
        if settings := resolved.settings(ref):
            lines += ["", "# rerankd.toml", settings]
        return _printable("\n".join(lines + _causal_lines(metadata)))
    recipe = resolved.outcome
    lines.append(f"scored as {explain(recipe, resolved.calibration)}")
    lines += [f"  {part}: {_value(recipe, part)} ({source})" for part, source in recipe.sources.items()]
    if resolved.calibration is not None:
        lines.append(f"  calibration: {resolved.calibration.quality}")
    lines += [f"note: {note}" for note in resolved.notes]
    lines += [f"warning: {warning}" for warning in resolved.warnings]
    return _printable("\n".join(lines))


def _printable(text: str) -> str:
    """The text without control characters and lone surrogates, which are escaped: a repository's files are
    untrusted input, and a terminal would obey them."""
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def _causal_lines(metadata: ModelMetadata) -> list[str]:
    """Describe the recipe that sentence-transformers' files declare for a causal model, which no backend
    computes."""
    recipe = causal_recipe(metadata)
    if recipe is None or isinstance(recipe, str):
        return [f"note: {recipe}"] if recipe else []
    lines = [f"its files declare {recipe.method}: {recipe.explanation}, after this prompt:", recipe.template]
    if recipe.instruction:
        lines.append(f"with the instruction: {recipe.instruction}")
    if recipe.settings:
        lines += ["", "# rerankd.toml: below the ref of a GGUF file of this model", recipe.settings]
    return lines


def _value(recipe: Recipe, part: str) -> str:
    """Return the value of a part of a recipe, on one line."""
    if part == "max_length":
        per = {
            "embedding": "a text",
            "late_interaction": "a document",
            "listwise": "a query and a block of documents",
        }.get(recipe.method, "query and document together")
        return f"{recipe.max_length:,} tokens for {per}"
    if part == "normalization":
        return recipe.normalization.name
    if part in ("low", "high", "logit_mean", "logit_sigma"):
        return f"{getattr(recipe.normalization, part):g}"
    if part == "image_tokens" and recipe.images is not None:
        one = recipe.images
        return f"{one.least} to {one.most} tokens for an image, one for each {one.side} × {one.side} pixels"
    value = part_of(recipe, part)
    if isinstance(value, int):  # a length, or a flag
        return json.dumps(value)
    if part in ("method", "pooling"):
        return str(value)
    texts = value if isinstance(value, tuple) else (value,)
    shown = (one if len(one) <= _WIDEST else one[:_WIDEST] + "…" for one in texts)
    return ", ".join(json.dumps(one, ensure_ascii=False) for one in shown)


def describe_json(metadata: ModelMetadata, resolved: Resolution, ref: str = "") -> dict[str, Any]:
    """Return the description as JSON values; either `recipe` or `refusal` is None. `scoring`, `reason`,
    `next_step` and `settings` are the fields of 0.1."""
    fields = {
        name: getattr(metadata, name) for name in ModelMetadata.__dataclass_fields__ if name not in _LEFT_OUT
    }
    recipe, refusal, entry = resolved.recipe, resolved.refusal, resolved.entry
    accepted = refused = None
    if recipe is not None:
        explanation = explain(recipe, resolved.calibration)
        accepted = asdict(recipe) | {"labels": list(recipe.labels), "explanation": explanation}
    if refusal is not None:
        settings = resolved.settings(ref)
        refused = {"reason": refusal.reason, "next_step": refusal.next_step, "settings": settings}
    return {
        "path": str(metadata.path),
        "parts": [part.name for part in metadata.parts],
        "metadata": {
            **fields,
            "output_labels": list(metadata.output_labels),
            "has_chat_template": bool(metadata.chat_template),
            "flaw": metadata.refusal.reason if metadata.refusal is not None else "",
        },
        "model": entry.name if entry is not None else None,
        "languages": list(entry.languages) if entry is not None else [],
        "licence": entry.licence if entry is not None else None,
        "scorable": recipe is not None,
        "recipe": accepted,
        "refusal": refused,
        "calibration": asdict(resolved.calibration) if resolved.calibration is not None else None,
        "notes": list(resolved.notes),
        "warnings": list(resolved.warnings),
        "modules": list(metadata.layout.kinds) if metadata.layout is not None else [],
        "causal_recipe": asdict(causal)
        if isinstance(causal := causal_recipe(metadata), CausalRecipe)
        else None,
        "scoring": _scoring(accepted) if accepted is not None else None,
        **(refused or {"reason": "", "next_step": "", "settings": ""}),
    }


def _scoring(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe under the field names of 0.1."""
    values = {name: value for name, value in recipe.items() if name != "sources"}
    return {
        "reason": values.pop("explanation"),
        "way": old_value("method", values.pop("method")),
        "window": values.pop("max_length"),
        "transform": values.pop("normalization"),
        **values,
    }


def _file_line(metadata: ModelMetadata) -> str:
    name = metadata.name or "no name in its header"
    parts = f" in {len(metadata.parts)} parts" if len(metadata.parts) > 1 else ""
    kind = metadata.file_type or metadata.quantisation or "no weights"
    kind += " in safetensors" if metadata.format == "safetensors" else ""
    count = metadata.parameters
    scale, unit = (1e9, "billion") if count >= 1e9 else (1e6, "million")
    return f"{name}: {kind}, {count / scale:.3g} {unit} parameters, {size_words(metadata.size_bytes)}{parts}"


def _model_line(metadata: ModelMetadata, resolved: Resolution) -> str:
    known = resolved.entry.name if resolved.entry is not None else "not in the catalog"
    return (
        f"{metadata.architecture} {_kind(metadata, resolved)}, {metadata.context_length:,} tokens ({known})"
    )


def _kind(metadata: ModelMetadata, resolved: Resolution) -> str:
    kind = "causal model" if metadata.is_causal else "encoder"
    if metadata.has_cls or metadata.has_cls_output:
        return f"{kind} with a {'projector' if metadata.has_listwise_markers else 'rank head'}"
    if resolved.recipe is not None and resolved.recipe.method == "causal_lm":
        return f"{kind} without a rank head (llama-server's own /v1/rerank would answer about 1e-20 for it)"
    return kind
