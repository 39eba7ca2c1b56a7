"""Which safer settings a model runs with after crashes (see backends/safer_steps.py). They are stored across
restarts."""

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
    """The models that run with safer settings, and these settings in words."""
    models = []
    for entry in learned.entries(SECTION).values():
        value = entry.value if isinstance(entry.value, dict) else {}
        if value.get("steps"):
            steps = value.get("words") or ", ".join(map(str, value["steps"]))  # version 0.1 stored no words
            words = f"{steps}, since {value.get('build', 'its engine')} {value.get('why', '')}"
            models.append((str(value.get("name", "")), words))
    return models


class SaferSettings:
    """The safer settings of a model's engines: the first `taken` of `steps`. They are stored for the model's
    file and the engine's build once an engine is ready with them.

    If an engine crashes after it was ready, the next step is taken only if no text explains the crash (see
    retry.py).
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
        """Set the available steps. Those that are stored are taken again."""
        self._steps = tuple(steps)
        value = self._learned.get(SECTION, self._key)
        known = value if isinstance(value, dict) else {}
        kept = known.get("steps", ())
        taken = [at + 1 for at, step in enumerate(self._steps) if step.name in kept]
        self._kept = self.taken = max(taken, default=0)
        if self.taken:
            self._why = str(known.get("why", ""))
            _log.info("%s: %s", self._name, self.words)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The steps taken."""
        return self._steps[: self.taken]

    @property
    def words(self) -> str:
        """What differs and why, in words; "" if nothing does."""
        if not self.taken:
            return ""
        return (
            f"it runs with safer settings ({safer_steps.words(self.steps)}) because its engine {self._why}; "
            f"`rerankd reload {self._name}` retries the default ones"
        )

    def lost(self, cause: Cause, *, loaded: bool) -> bool:
        """An engine was lost. Returns whether the next one runs with safer settings. If an engine does not
        load and no step is left, the next attempt starts with the default settings again."""
        following = safer_steps.after(self._steps, self.taken, cause, loaded=loaded)
        if following == self.taken:
            if not loaded:
                self.taken = 0
            return False
        self.taken = following
        self._why = {"memory": "ran out of memory", "exit": "exited"}.get(cause, "crashed")
        self._why += " under load" if loaded else " while loading"
        _log.warning("%s: %s", self._name, self.words)
        return True

    def is_ready(self) -> None:
        """An engine is ready with these settings: store them. Writes to the disk."""
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
        """Return to the default settings. Writes to the disk."""
        self.taken = self._kept = 0
        self._learned.remove(SECTION, self._key)
