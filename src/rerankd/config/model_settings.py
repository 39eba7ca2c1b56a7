"""Per-model settings: what can be set for one model in `[models.NAME]`, and for all models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field

from rerankd.backends.options import Options, per_model
from rerankd.backends.table import BACKENDS
from rerankd.config.backend_options import with_options, with_overrides
from rerankd.config.cascade import Stages
from rerankd.config.ray_settings import RaySettings
from rerankd.config.request_defaults import RequestDefaults
from rerankd.config.scoring_settings import ScoringSettings
from rerankd.normalization import Calibration

if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal["auto", *(backend.name for backend in BACKENDS)]


def split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(split_commas)]
DAY_S = 86_400.0
# A shorter interval would keep a polling loop busy.
Seconds = Annotated[float, Field(ge=0.01, le=DAY_S)]
MemoryBytes = Annotated[int | None, Field(ge=2**20, le=2**50)]


class ServingSettings(Options):
    """Settings of all models that a `[models.NAME]` section may override."""

    engine: EngineName = per_model(
        "auto",
        description="backend that runs the model: "
        + ", ".join(f"{backend.name} ({backend.summary})" for backend in BACKENDS)
        + ", or auto for the fastest one that supports it",
    )
    replicas: int = per_model(1, ge=1, le=64, description="number of engines that share the model's requests")
    threads: int | None = per_model(
        None, ge=1, le=1024, description="threads per engine; if not set, the number of physical cores"
    )
    document_vectors_mb: int = per_model(
        256,
        ge=0,
        le=2**20,
        description="late_interaction: MiB per engine for the vectors of documents, so that a document is "
        "read only once; 0 keeps none",
    )
    idle_unload_s: float | None = per_model(
        None,
        ge=0.01,
        le=365 * DAY_S,
        description="seconds without a request before a model is unloaded; if not set, never",
    )
    preload: bool = per_model(
        True, description="load the model at startup if it fits into memory; otherwise at its first request"
    )
    force: bool = per_model(
        False, description="serve a model even if it fails its self-test, with a warning in each response"
    )


@with_overrides(ServingSettings, RequestDefaults, RaySettings)
class ModelSettings(ScoringSettings):
    """One `[models.NAME]` section. A setting that it omits has the value set for all models."""

    ref: str = Field(
        "",
        description="the model: a name from `rerankd list`, a GGUF file, or builtin:e5; if empty, NAME",
    )
    aliases: Names = Field((), description="additional names of the model in requests")
    calibration: Calibration | None = Field(
        None, description="scores as probabilities of relevance; written by `rerankd eval --calibrate`"
    )
    stages: Stages = Field(
        (),
        description="instead of `ref`, a cascade: the models that score the documents in turn, the fastest "
        "first (see cascade.md)",
    )


@with_options
class EffectiveModelSettings(ServingSettings, RequestDefaults, RaySettings):
    """All settings of one model to serve, after merging. `section` is the NAME of its [models.NAME] section,
    "" without one. `names` are the names that the user gave it, none or several; the first one is
    displayed."""

    ref: str
    section: str
    names: tuple[str, ...]
    scoring: ScoringSettings
    calibration: Calibration | None = None

    @property
    def of_engines(self) -> Self:
        """The settings that an engine depends on. If they are equal after a reload, the engine keeps running;
        what does not concern engines is reset here."""
        fields = RequestDefaults.model_fields | RaySettings.model_fields
        return self.model_copy(update={name: field.default for name, field in fields.items()})

    @property
    def changed(self) -> dict[str, Any]:
        """The settings that differ from their defaults, as JSON values."""
        found = self.model_dump(
            mode="json", exclude_defaults=True, exclude={"ref", "section", "names", "scoring", "calibration"}
        )
        return found | self.scoring.model_dump(mode="json", exclude_defaults=True)
