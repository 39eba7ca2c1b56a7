"""The engines that can run a model here, each as a name and the environment that makes a service use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rerankd.backends.base import Backend, Offer
from rerankd.backends.options import trait
from rerankd.backends.table import BACKENDS
from rerankd.config import EffectiveModelSettings
from rerankd.domain import Refusal


@dataclass(frozen=True, slots=True)
class EngineRow:
    """`without` are environment names that are taken away, `settings` those that are set."""

    name: str
    without: frozenset[str]
    settings: Mapping[str, str]

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """`environ` as a service with this engine is to have it."""
        kept = {name: value for name, value in environ.items() if name not in self.without}
        return {**kept, **self.settings}


def as_set(chosen: Offer) -> EngineRow:
    """The engine that rerankd has chosen for the model."""
    return EngineRow(chosen.title, frozenset(), {})


def all_of(
    said: Sequence[tuple[Backend, Offer | Refusal]], wanted: EffectiveModelSettings, home: Path
) -> list[EngineRow]:
    """Every engine at hand of the backends that can run the model; `said` is what each says of it. Looks at
    the machine."""
    named = programs()
    without = frozenset(("RERANKD_ENGINE", *(f"RERANKD_{name.upper()}" for name in named), *named.values()))
    return [
        EngineRow(one.label, without, one.environment)
        for backend, offer in said
        if isinstance(offer, Offer)
        for one in backend.installations(wanted.options(backend.Options), home)
        if one.runs_here
    ]


def programs() -> dict[str, str]:
    """The settings that name a backend's program, each with its second name in the environment."""
    fields = (field for backend in BACKENDS for field in backend.Options.model_fields.items())
    return {name: other for name, field in fields if (other := trait(field, "environment"))}
