"""(pure) Safer settings for an engine that crashes, one step after the other.

Each step gives up some speed for one thing that may be at fault. The steps of a model are a value that is
made from how it runs by default; how many of them are taken is kept for the model's file and the engine's
build, so a new build is tried with the better settings again. CUDA graphs are off from the start (see
llama/launch.py): an engine that only reads prompts gains nothing from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rerankd.process.reasons import Cause

Step = Literal["flash_attention", "slots", "batches", "half_on_gpu", "cpu", "float32", "other_backend"]

WORDS: dict[Step, str] = {
    "flash_attention": "llama.cpp's default for flash attention",
    "slots": "one text at a time",
    "batches": "smaller batches",
    "half_on_gpu": "half of its layers on the GPU",
    "cpu": "no layers on the GPU",
    "float32": "float32 arithmetic",
    "other_backend": "another engine",
}
# What lowers the memory that is used. Another engine may take more.
_SAVES_MEMORY: frozenset[Step] = frozenset({"slots", "batches", "half_on_gpu", "cpu"})


@dataclass(frozen=True, slots=True)
class Setup:
    """How a model runs by default, as far as a step may change it. `layers` on a GPU is 0 where none is used;
    `other` names another engine that can run the same file, "" where there is none."""

    backend: Literal["llama", "openvino"]
    slots: int = 1
    layers: int = 0
    sets_flash_attention: bool = False
    splits_prompts: bool = False
    precision: str = "f32"
    other: str = ""


def steps(setup: Setup) -> tuple[Step, ...]:
    """The steps that change anything for a model, in their order."""
    found: list[Step] = []
    if setup.backend == "openvino":
        found += ["float32"] if setup.precision != "f32" else []
    else:
        found += ["flash_attention"] if setup.sets_flash_attention else []
        found += ["slots"] if setup.slots > 1 else []
        found += ["batches"] if setup.splits_prompts else []
        found += ["half_on_gpu", "cpu"] if setup.layers else []
    return (*found, "other_backend") if setup.other else tuple(found)


def after(found: Sequence[Step], taken: int, cause: Cause, *, loaded: bool) -> int:
    """How many of the steps to take after an engine went with `taken` of them; `loaded` tells whether it had
    become ready. The same number: none of the rest would help."""
    if cause == "crash" or (cause == "exit" and loaded):
        return min(taken + 1, len(found))
    if cause == "exit" and "other_backend" in found[taken:]:
        # It ended in order and before it was ready: it cannot run this file here, whatever the settings.
        return len(found)
    if cause == "memory":
        saving = [at + 1 for at in range(taken, len(found)) if found[at] in _SAVES_MEMORY]
        return saving[0] if saving else taken
    return taken


def words(found: Sequence[Step]) -> str:
    """Steps that are taken, for a person."""
    if "other_backend" in found:
        return WORDS["other_backend"]
    return ", ".join(WORDS[step] for step in found)
