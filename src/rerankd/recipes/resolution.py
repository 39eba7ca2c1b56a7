"""The outcome of `resolve`: a recipe, or a refusal with the section of rerankd.toml that supplies what is
missing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rerankd.domain import Recipe, Refusal
from rerankd.recipes.catalog import Entry
from rerankd.recipes.model_identity import plain
from rerankd.recipes.prompts import toml


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a file is scored, or why not. `entry` is the known model that it is, `notes` are for the user,
    `warnings` go with every answer: the file does not say what is assumed."""

    path: Path
    outcome: Recipe | Refusal
    entry: Entry | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def recipe(self) -> Recipe | None:
        return self.outcome if isinstance(self.outcome, Recipe) else None

    @property
    def refusal(self) -> Refusal | None:
        return self.outcome if isinstance(self.outcome, Refusal) else None

    @property
    def explanation(self) -> str:
        """The outcome in one sentence for the user."""
        if isinstance(self.outcome, Refusal):
            return f"can't be scored right: {self.outcome.reason}; {self.outcome.next_step}"
        return self.outcome.explanation

    def settings(self, ref: str = "") -> str:
        """The section of rerankd.toml that supplies what is missing, "" where there is none. `ref` is what
        the user calls the model, the path where it is not given."""
        if self.refusal is None or not self.refusal.lines:
            return ""
        called = ref or str(self.path)
        if called == str(self.path):  # the settings are read in other folders too
            called = str(self.path.absolute())
        return f"[models.{_section_name(called)}]\nref = {toml(called)}\n{self.refusal.lines}"

    def require(self, ref: str = "") -> Recipe:
        """The recipe; raises Unscorable, with the reason, the next step and the settings that supply what is
        missing, when there is none. `ref` is what the user calls the model."""
        if isinstance(self.outcome, Refusal):
            refusal = replace(self.outcome, lines=self.settings(ref))
            raise refusal.error(f"{ref or self.path}: can't be scored right")
        return self.outcome


def _section_name(called: str) -> str:
    """A name for the section of what the user calls so: a path, or hf:org/repo:quant."""
    hub, _, rest = called.partition(":")
    repo = rest.partition(":")[0] if hub in ("hf", "ms") else called
    return plain(Path(repo).name.removesuffix(".gguf")) or "model"
