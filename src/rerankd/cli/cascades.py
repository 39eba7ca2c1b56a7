"""What the commands for one model do with a cascade: print its stages, or ask for the model of a stage."""

from __future__ import annotations

from typing import Any

from rerankd.config import EffectiveModelSettings, Settings
from rerankd.config.cascade import Cascade
from rerankd.errors import ConfigError
from rerankd.toml_values import toml, toml_key


def of_model(settings: Settings, model: str) -> EffectiveModelSettings:
    """The settings of one model. Raises ConfigError for a cascade."""
    if (cascade := settings.cascade(model)) is not None:
        stages = ", ".join(stage.model for stage in cascade.stages)
        raise ConfigError(
            f"{model} is a cascade in the settings, but this needs one model. Name the model of a stage: "
            f"{stages}."
        )
    return settings.of(model)


def as_json(cascade: Cascade) -> dict[str, Any]:
    """The stages of a cascade as JSON values; `text` is the same for people."""
    stages = [stage.model_dump() for stage in cascade.stages]
    return {
        "cascade": cascade.name,
        "aliases": list(cascade.names[1:]),
        "stages": stages,
        "budget_ms": cascade.budget_ms,
        "text": text(cascade),
    }


def text(cascade: Cascade) -> str:
    """The stages of a cascade, one a line."""
    lines = [f"{cascade.name}: a cascade in the settings"]
    for at, stage in enumerate(cascade.stages, 1):
        documents = "all documents" if stage.keep is None else f"the best {stage.keep} documents so far"
        if stage.margin is not None:
            documents += f"; with top_n, only those at most {stage.margin:g} below document top_n"
        lines.append(f"  stage {at}: {stage.model} scores {documents}")
    if cascade.budget_ms is not None:
        lines.append(f"  time budget: {cascade.budget_ms} ms for all stages")
    return "\n".join([*lines, f"for a stage's model: rerankd inspect {cascade.stages[0].model}"])


def section(cascade: Cascade) -> str:
    """The section of rerankd.toml that defines the cascade."""
    lines = [
        f"# {cascade.name} is a cascade: {cascade}.",
        f"# Each stage has its model's own recipe: rerankd recipe show {cascade.stages[0].model}",
        f"[models.{toml_key(cascade.name)}]",
        "stages = [",
    ]
    for stage in cascade.stages:
        numbers = stage.model_dump(exclude={"model"}, exclude_none=True)
        values = "".join(f", {name} = {value}" for name, value in numbers.items())
        lines.append(f"    {{model = {toml(stage.model)}{values}}},")
    lines.append("]")
    if cascade.names[1:]:
        lines.append(f"aliases = {toml(cascade.names[1:])}")
    if cascade.budget_ms is not None:
        lines.append(f"budget_ms = {cascade.budget_ms}")
    return "\n".join(lines)
