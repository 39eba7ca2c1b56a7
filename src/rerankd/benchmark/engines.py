"""The engines to compare: all that can run a model here, with the environment that makes a service use
each."""

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
    """An engine to measure. A service uses it if the variables `without` are removed from its environment and
    `settings` are added."""

    name: str
    without: frozenset[str]
    settings: Mapping[str, str]

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of a service with this engine."""
        kept = {name: value for name, value in environ.items() if name not in self.without}
        return {**kept, **self.settings}


def as_set(*chosen: Offer) -> EngineRow:
    """Return the engine that rerankd has selected for the model, or those for the stages of a cascade."""
    return EngineRow(" → ".join(one.title for one in chosen), frozenset(), {})


def all_of(
    offers: Sequence[tuple[Backend, Offer | Refusal]], wanted: EffectiveModelSettings, home: Path
) -> list[EngineRow]:
    """Return all installed engines of the backends that can run the model. `offers` holds the offer or
    refusal of each backend. Inspects the machine."""
    named = programs()
    without = frozenset(("RERANKD_ENGINE", *(f"RERANKD_{name.upper()}" for name in named), *named.values()))
    return [
        EngineRow(one.label, without, one.environment)
        for backend, offer in offers
        if isinstance(offer, Offer)
        for one in backend.installations(wanted.options(backend.Options), home)
        if one.runs_here
    ]


def programs() -> dict[str, str]:
    """Return the settings that name a backend's program, each with its second environment variable."""
    fields = (field for backend in BACKENDS for field in backend.Options.model_fields.items())
    return {name: other for name, field in fields if (other := trait(field, "environment"))}
