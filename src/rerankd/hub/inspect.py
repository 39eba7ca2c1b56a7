"""Facts and verdict in plain words (`describe`) and as a dictionary for programs (`describe_json`)."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rerankd.formats.metadata import ModelMetadata
from rerankd.progress import size_words
from rerankd.recipes.resolve import Verdict

# Texts of many thousand characters, and things only the engine needs
_LEFT_OUT = ("tokens", "control_tokens", "user_defined_tokens", "chat_template", "path", "parts", "refusal")


def describe(facts: ModelMetadata, verdict: Verdict, ref: str = "") -> str:
    """A few lines for a person: what the file is, and how it is scored or why it is not. `ref` is what the
    user calls it."""
    lines = [str(facts.path), _file_line(facts), _model_line(facts, verdict)]
    scoring = verdict.scoring
    if scoring is None:
        lines.append(f"refused: {verdict.reason}")
        lines.append(f"what to do: {verdict.next_step}")
        if said := verdict.settings(ref):
            lines += ["", "# rerankd.toml", said]
        return "\n".join(lines)
    lines.append(f"scored as {scoring.method}: {scoring.reason}")
    per = "text" if scoring.method == "embedding" else "query and document together"
    normalization = scoring.normalization
    bounds = (
        f" from {normalization.low:g} to {normalization.high:g}" if normalization.name == "affine" else ""
    )
    lines.append(
        f"max_length: {scoring.max_length:,} tokens for {per}; normalization: {normalization.name}{bounds}"
    )
    lines.extend(f"note: {note}" for note in verdict.notes)
    return "\n".join(lines)


def describe_json(facts: ModelMetadata, verdict: Verdict, ref: str = "") -> dict[str, Any]:
    """The same as a dictionary of JSON values; `scoring` is None when the file is refused."""
    said = {
        name: getattr(facts, name) for name in ModelMetadata.__dataclass_fields__ if name not in _LEFT_OUT
    }
    scoring, entry = verdict.scoring, verdict.entry
    return {
        "path": str(facts.path),
        "parts": [part.name for part in facts.parts],
        "facts": {
            **said,
            "output_labels": list(facts.output_labels),
            "has_chat_template": bool(facts.chat_template),
            "flaw": facts.refusal.reason if facts.refusal is not None else "",
        },
        "model": entry.name if entry is not None else None,
        "languages": list(entry.languages) if entry is not None else [],
        "licence": entry.licence if entry is not None else None,
        "scorable": scoring is not None,
        "scoring": asdict(scoring) | {"labels": list(scoring.labels)} if scoring is not None else None,
        "reason": verdict.reason,
        "next_step": verdict.next_step,
        "settings": verdict.settings(ref),
        "notes": list(verdict.notes),
    }


def _file_line(facts: ModelMetadata) -> str:
    name = facts.name or "no name in its header"
    parts = f" in {len(facts.parts)} parts" if len(facts.parts) > 1 else ""
    kind = facts.file_type or facts.quantisation or "no weights"
    kind += " in safetensors" if facts.format == "safetensors" else ""
    count = facts.parameters
    scale, unit = (1e9, "billion") if count >= 1e9 else (1e6, "million")
    return f"{name}: {kind}, {count / scale:.3g} {unit} parameters, {size_words(facts.size_bytes)}{parts}"


def _model_line(facts: ModelMetadata, verdict: Verdict) -> str:
    known = verdict.entry.name if verdict.entry is not None else "not in the catalog"
    return f"{facts.architecture} {_kind(facts, verdict)}, {facts.context_length:,} tokens ({known})"


def _kind(facts: ModelMetadata, verdict: Verdict) -> str:
    headed = facts.has_cls or facts.has_cls_output
    method = verdict.scoring.method if verdict.scoring is not None else None
    if not facts.is_causal:
        return "encoder with a rank head" if headed else "encoder"
    if headed:
        return "causal model with a rank head"
    if method == "causal_lm":
        return (
            "causal model without a rank head (llama-server's own /v1/rerank would answer about 1e-20 for it)"
        )
    return "causal model"
