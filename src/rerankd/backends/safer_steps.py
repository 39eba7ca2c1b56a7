"""(pure) Safer settings for an engine that crashes, one step after the other.

Each step gives up some speed for one thing that may be at fault. A backend makes the steps of a model from
how it runs by default; how many of them are taken is kept for the model's file and the engine's build, so a
new build is tried with the better settings again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rerankd.process.failure_reasons import Cause


@dataclass(frozen=True, slots=True)
class Step:
    """One safer setting, in words for a person. `saves_memory`: it lowers the memory that is used."""

    name: str
    words: str
    saves_memory: bool = False


# The last step of all, where another backend can run the same file. It may take more memory.
OTHER_BACKEND = Step("other_backend", "another engine")


def after(found: Sequence[Step], taken: int, cause: Cause, *, loaded: bool) -> int:
    """How many of the steps to take after an engine went with `taken` of them; `loaded` tells whether it had
    become ready. The same number: none of the rest would help."""
    if cause == "crash" or (cause == "exit" and loaded):
        return min(taken + 1, len(found))
    if cause == "exit" and OTHER_BACKEND in found[taken:]:
        # It ended in order and before it was ready: it cannot run this file here, whatever the settings.
        return len(found)
    if cause == "memory":
        saving = [at + 1 for at in range(taken, len(found)) if found[at].saves_memory]
        return saving[0] if saving else taken
    return taken


def words(found: Sequence[Step]) -> str:
    """Steps that are taken, for a person."""
    return OTHER_BACKEND.words if OTHER_BACKEND in found else ", ".join(step.words for step in found)
