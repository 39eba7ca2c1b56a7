"""(pure) Cascades: `stages` in a [models.NAME] section, their validation, and what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Protocol

from pydantic import BeforeValidator, Field

from rerankd.backends.options import Options


class Stage(Options):
    """One stage of a cascade. A string stands for a stage with this model alone."""

    model: str = Field(pattern=r"\S", description="a [models.NAME] section, or a model as in `model`")
    keep: int | None = Field(
        None, ge=1, le=10**6, description="how many of the best documents so far this stage scores"
    )
    margin: float | None = Field(
        None,
        ge=0,
        description="early exit: if a request has top_n, leave out documents whose raw score in the stage "
        "before is lower than that of document top_n by more than this",
    )


Stages = tuple[
    Annotated[Stage, BeforeValidator(lambda value: {"model": value} if isinstance(value, str) else value)],
    ...,
]


@dataclass(frozen=True, slots=True)
class Cascade:
    """A name that scores documents in stages: all with the first stage's model, the best of them with the
    next one's. `names[0]` is displayed. `is_first`: it answers requests that name no model. `budget_ms` is
    its time budget for a request that sets none."""

    names: tuple[str, ...]
    stages: tuple[Stage, ...]
    budget_ms: int | None
    is_first: bool

    @property
    def name(self) -> str:
        return self.names[0]

    def __str__(self) -> str:
        """The stages in words: "a for all documents, then b for the best 20"."""
        first, *others = self.stages
        words = [f"then {stage.model} for the best {stage.keep}" for stage in others]
        return ", ".join((f"{first.model} for all documents", *words))


class Section(Protocol):
    """What this module reads of a [models.NAME] section."""

    @property
    def stages(self) -> tuple[Stage, ...]: ...
    @property
    def aliases(self) -> tuple[str, ...]: ...
    def model_dump(self, *, exclude_defaults: bool) -> dict[str, object]: ...


# All other settings of a cascade's section belong to the model of a stage.
_ALLOWED = {"stages", "aliases", "budget_ms"}


def check(models: Mapping[str, Section]) -> None:
    """Raise ValueError for a section whose stages can't be served."""
    for name, section in models.items():
        if section.stages:
            _check_section(name, section, models)


def _check_section(name: str, section: Section, models: Mapping[str, Section]) -> None:
    where, stages = f"models.{name}", section.stages
    if len(stages) < 2:
        raise ValueError(f"{where}: stages must list two or more models, the fastest first")
    if others := sorted(section.model_dump(exclude_defaults=True).keys() - _ALLOWED):
        raise ValueError(
            f"{where}: a section with stages can't set {' and '.join(others)}; set it in the section of the "
            "model of a stage"
        )
    taken = {one: other for other, own in models.items() for one in (other, *own.aliases) if other != name}
    for one in section.aliases:
        if one in taken:
            raise ValueError(f"{where}: the alias {one} is also a name of models.{taken[one]}")
    if name in taken:
        raise ValueError(f"{where}: {name} is also an alias of models.{taken[name]}")
    _check_stages(where, stages)
    for stage in stages:
        other = name if stage.model in (name, *section.aliases) else stage.model
        if other in models and models[other].stages:
            raise ValueError(
                f"{where}: the stage {stage.model} is a cascade itself; list the models of its stages instead"
            )
        if (owner := taken.get(stage.model)) is not None and owner != stage.model:
            raise ValueError(f"{where}: the stage {stage.model} is an alias; write {owner}")


def _check_stages(where: str, stages: Sequence[Stage]) -> None:
    models = [stage.model for stage in stages]
    if double := next((one for at, one in enumerate(models) if one in models[:at]), None):
        raise ValueError(f"{where}: two stages have the model {double}")
    if stages[0].keep is not None or stages[0].margin is not None:
        raise ValueError(f"{where}: the first stage scores all documents, so it has no keep and no margin")
    limit: int | None = None
    for stage in stages[1:]:
        if stage.keep is None:
            example = f'{{model = "{stage.model}", keep = 20}}'
            raise ValueError(f"{where}: the stage {stage.model} needs keep, as in {example}")
        if limit is not None and stage.keep > limit:
            raise ValueError(
                f"{where}: the stage {stage.model} can't keep {stage.keep} documents; the stage before it "
                f"scores only {limit}"
            )
        limit = stage.keep
