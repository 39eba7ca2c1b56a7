"""The recommended models of `rerankd list --recommend`, as JSON values and as text, with the pull
commands."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from rerankd.hub import builtin
from rerankd.progress import size_words
from rerankd.recipes import catalog
from rerankd.recipes.recommend import QUALITY_SOURCE, Wish, recommend


def describe(wish: Wish, *, has_unknown_gpu: bool = False) -> dict[str, Any]:
    """Return the recommendation as JSON values. `has_unknown_gpu`: engines may use a GPU whose memory rerankd
    can't measure; it is ignored."""
    picks = [
        {
            "name": pick.entry.name.lower(),
            "best_for": pick.best_for,
            "why": pick.why,
            "device": pick.device,
            "ndcg10": pick.entry.ndcg10,
            "size_mb": pick.entry.size_mb,
            "languages": list(pick.entry.languages),
            "licence": pick.entry.licence,
            "command": f"rerankd pull {pick.entry.name.lower()}",
        }
        for pick in recommend(catalog.known().entries, wish)
    ]
    return {
        "machine": {**asdict(wish), "has_unknown_gpu": has_unknown_gpu},
        "quality_source": QUALITY_SOURCE,
        "models": picks,
    }


def text(found: Mapping[str, Any]) -> str:
    """Return the recommendation as text."""
    machine = found["machine"]
    lines = [_machine_line(machine)]
    if not any(pick["best_for"] == "quality" for pick in found["models"]):
        lines += [
            "",
            *_wrapped(
                "No reranker of the catalog with a published quality meets these conditions and fits into "
                f"memory. {builtin.NAME}, an embedding model of 90 MB, needs less, and ranks worse:",
                "",
            ),
            f"    rerankd pull {builtin.NAME}",
        ]
    for pick in found["models"]:
        languages = " ".join(pick["languages"])
        facts = f"{pick['size_mb']} MB, on the {pick['device']}, languages {languages}, {pick['licence']}"
        lines += ["", f"{pick['name']}  ({facts})", *_wrapped(pick["why"]), f"    {pick['command']}"]
    if not found["models"]:
        return "\n".join(lines)
    other = machine["language"] not in ("", "en")
    note = f"The quality is {found['quality_source']}. "
    note += (
        "For other languages no source compares these models. " if other or not machine["language"] else ""
    )
    note += "To compare models on your own texts: rerankd eval"
    return "\n".join([*lines, "", *_wrapped(note, "")])


def _machine_line(machine: Mapping[str, Any]) -> str:
    memory = machine["memory_bytes"]
    parts = [
        f"{machine['cores']} CPU cores" if machine["cores"] > 1 else "one CPU core",
        f"{size_words(memory)} of memory" if memory is not None else "an unknown amount of memory",
        f"a GPU with {size_words(machine['gpu_bytes'])}"
        if machine["gpu_bytes"]
        else "no GPU that engines can use",
    ]
    if machine["has_unknown_gpu"]:
        parts[-1] = "perhaps a GPU, whose memory rerankd can't measure"
    return f"This machine has {parts[0]}, {parts[1]} and {parts[2]}."


def _wrapped(sentence: str, indent: str = "    ") -> list[str]:
    return textwrap.wrap(sentence, 100, initial_indent=indent, subsequent_indent=indent)
