"""Which of the safer settings a model runs with (see backends/safer_steps.py), and what is kept of that."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

from rerankd.backends import safer_steps
from rerankd.backends.safer_steps import Step
from rerankd.process.failure_reasons import Cause
from rerankd.state import StateStore

_log = logging.getLogger("rerankd.engine")

SECTION = "safer_settings"


def models_in_use(learned: StateStore) -> list[tuple[str, str]]:
    """The models that run with safer settings by what is kept, and the settings in words."""
    found = []
    for entry in learned.entries(SECTION).values():
        value = entry.value if isinstance(entry.value, dict) else {}
        if value.get("steps"):
            steps = value.get("words") or ", ".join(map(str, value["steps"]))  # 0.1 kept no words
            words = f"{steps}, since {value.get('build', 'its engine')} {value.get('why', '')}"
            found.append((str(value.get("name", "")), words))
    return found


class SaferSettings:
    """The steps that a model's engines run with: `taken` of `steps`. One that has become ready with safer
    settings than before has them kept for the model's file and the engine's build.

    An engine that was ready and crashes steps down only where its texts don't explain it (see retry.py).
    """

    def __init__(self, learned: StateStore, name: str, fingerprint: str, build: str) -> None:
        self._learned = learned
        self._name = name
        self._model = fingerprint
        self._build = build
        digest = hashlib.blake2b(f"{fingerprint}\0{build}".encode("utf-8", "replace"), digest_size=16)
        self._key = digest.hexdigest()
        self._steps: tuple[Step, ...] = ()
        self._kept = 0
        self._why = ""
        self.taken = 0

    def begin(self, steps: Sequence[Step]) -> None:
        """The steps there are. Those that were kept are taken again."""
        self._steps = tuple(steps)
        said = self._learned.get(SECTION, self._key)
        known = said if isinstance(said, dict) else {}
        kept = known.get("steps", ())
        taken = [at + 1 for at, step in enumerate(self._steps) if step.name in kept]
        self._kept = self.taken = max(taken, default=0)
        if self.taken:
            self._why = str(known.get("why", ""))
            _log.info("%s: %s", self._name, self.words)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps that are taken."""
        return self._steps[: self.taken]

    @property
    def words(self) -> str:
        """What is different and why, for a person; "" where nothing is."""
        if not self.taken:
            return ""
        return (
            f"it runs with safer settings ({safer_steps.words(self.steps)}) since its engine {self._why}; "
            f"rerankd reload {self._name} tries the better ones"
        )

    def lost(self, cause: Cause, *, loaded: bool) -> bool:
        """An engine went. Whether the next one runs with safer settings; where no step is left for one that
        does not load, the next try begins at the first step again."""
        following = safer_steps.after(self._steps, self.taken, cause, loaded=loaded)
        if following == self.taken:
            if not loaded:
                self.taken = 0
            return False
        self.taken = following
        self._why = {"memory": "ran out of memory", "exit": "ended by itself"}.get(cause, "crashed")
        self._why += " under load" if loaded else " while it loaded"
        _log.warning("%s: %s", self._name, self.words)
        return True

    def is_ready(self) -> None:
        """An engine with these settings has scored. Writes to the disk."""
        if self.taken == self._kept:
            return
        self._kept = self.taken
        if not self.taken:
            self._learned.remove(SECTION, self._key)
        else:
            value = {
                "steps": [step.name for step in self.steps],
                "words": safer_steps.words(self.steps),
                "why": self._why,
                "name": self._name,
                "model": self._model,
                "build": self._build,
            }
            self._learned.put(SECTION, self._key, value)

    def forget(self) -> None:
        """Start with the best settings again. Writes to the disk."""
        self.taken = self._kept = 0
        self._learned.remove(SECTION, self._key)
