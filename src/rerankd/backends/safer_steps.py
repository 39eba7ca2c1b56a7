"""(pure) Safer settings to try, one step after the other, when an engine crashes.

Each step trades some speed for avoiding one possible cause of the crash. A backend derives the steps of a
model from its default settings. The number of steps in use is stored per model file and engine build, so a
new build starts with the fastest settings again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rerankd.process.failure_reasons import Cause


@dataclass(frozen=True, slots=True)
class Step:
    """One safer setting; `words` describes it for messages. `saves_memory`: it reduces memory use."""

    name: str
    words: str
    saves_memory: bool = field(default=False, compare=False)


# The last step, if another backend can run the same file. Whether it saves memory depends on the model.
OTHER_BACKEND = Step("other_backend", "another engine")


def after(steps: Sequence[Step], taken: int, cause: Cause, *, loaded: bool) -> int:
    """Return how many steps to use after an engine failed with `taken` of them. The result equals `taken` if
    no further step would help. `loaded`: the engine had become ready before it failed."""
    if cause == "crash" or (cause == "exit" and loaded):
        return min(taken + 1, len(steps))
    if cause == "exit" and OTHER_BACKEND in steps[taken:]:
        # An orderly exit before it was ready: the engine can't run this file here with any settings.
        return len(steps)
    if cause == "memory":
        saving = [at + 1 for at in range(taken, len(steps)) if steps[at].saves_memory]
        return saving[0] if saving else taken
    return taken


def words(steps: Sequence[Step]) -> str:
    """Describe the steps in use, for messages."""
    return OTHER_BACKEND.words if OTHER_BACKEND in steps else ", ".join(step.words for step in steps)
