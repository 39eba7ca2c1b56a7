"""The result of `resolve`: a recipe, or why the model was refused and the settings that would fix it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from rerankd.domain import Recipe, Refusal
from rerankd.normalization import Calibration, Normalization
from rerankd.recipes.catalog import Entry
from rerankd.recipes.explanation import explain
from rerankd.recipes.model_identity import plain
from rerankd.toml_values import toml, toml_key


@dataclass(frozen=True, slots=True)
class Resolution:
    """How a model file is scored, or why it is refused.

    `entry` is the catalog's model that the file was recognised as. `notes` are shown where the recipe is
    shown; `warnings` are part of every response, because the recipe contains an assumption. `section` is the
    NAME of the model's [models.NAME] section, "" if the settings have none. `calibration`
    replaces the recipe's normalization in responses, and nowhere else: a raw score does not depend on it, nor
    does the self-test.
    """

    path: Path
    outcome: Recipe | Refusal
    entry: Entry | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    calibration: Calibration | None = None
    section: str = ""

    def calibrated(self, own: Normalization) -> Normalization:
        """The normalization of responses, where the recipe's is `own`."""
        return own if self.calibration is None else self.calibration.normalization(own.divisor)

    @property
    def recipe(self) -> Recipe | None:
        return self.outcome if isinstance(self.outcome, Recipe) else None

    @property
    def refusal(self) -> Refusal | None:
        return self.outcome if isinstance(self.outcome, Refusal) else None

    @property
    def explanation(self) -> str:
        """What the user reads: the scoring formula, or why the model is refused and what to do."""
        if isinstance(self.outcome, Refusal):
            return f"can't be scored correctly: {self.outcome}"
        return explain(self.outcome, self.calibration)

    def settings(self, ref: str = "") -> str:
        """The section of rerankd.toml that supplies what is missing, "" if settings can't.

        `ref` is how the user refers to the model; without it, the section names the path.
        """
        if self.refusal is None or not self.refusal.lines:
            return ""
        return "\n".join((*self.header(ref), self.refusal.lines))

    def header(self, ref: str = "") -> tuple[str, str]:
        """The first two lines of the model's section in rerankd.toml: its name and `ref`."""
        if ref in ("", str(self.path)):
            ref = str(self.path.absolute())  # rerankd may read the settings in another working directory
        return f"[models.{toml_key(self.name(ref))}]", f"ref = {toml(ref)}"

    def name(self, ref: str) -> str:
        """The name of the model's section in rerankd.toml: its present one, else one made from `ref`."""
        return self.section or section_name(ref)

    def require(self, ref: str = "") -> Recipe:
        """The recipe. Raises Unscorable with the reason, the next step and the section for rerankd.toml if
        the model is refused. `ref` is how the user refers to the model."""
        if isinstance(self.outcome, Refusal):
            refusal = replace(self.outcome, lines=self.settings(ref))
            raise refusal.error(f"{ref or self.path}: can't be scored correctly")
        return self.outcome


def section_name(ref: str) -> str:
    """The name of a model's section, from its path or from hf:org/repo:quant."""
    hub, _, rest = ref.partition(":")
    repo = rest.partition(":")[0] if hub in ("hf", "ms") else ref
    return plain(Path(repo).name.removesuffix(".gguf")) or "model"
