"""What can be set for one model, and for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BeforeValidator, Field

from rerankd.backends.options import Options, per_model
from rerankd.backends.table import BACKENDS
from rerankd.config.backend_options import with_options, with_own
from rerankd.config.request_defaults import RequestDefaults
from rerankd.config.scoring_settings import ScoringSettings

if TYPE_CHECKING:
    EngineName = str
else:
    EngineName = Literal["auto", *(backend.name for backend in BACKENDS)]


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]
DAY_S = 86_400.0
# In less, a loop would only look at the clock.
Seconds = Annotated[float, Field(ge=0.01, le=DAY_S)]
MemoryBytes = Annotated[int | None, Field(ge=2**20, le=2**50)]


class ServingSettings(Options):
    """What is set for all models, and may be another for each."""

    engine: EngineName = per_model(
        "auto",
        description="what runs the model: "
        + ", ".join(f"{backend.name} ({backend.summary})" for backend in BACKENDS)
        + ", or auto for the fastest that can",
    )
    replicas: int = per_model(1, ge=1, le=64, description="engines of the model, which share its requests")
    threads: int | None = per_model(
        None, ge=1, le=1024, description="threads of each engine; as many as there are physical cores"
    )
    idle_unload_s: float | None = per_model(
        None,
        ge=0.01,
        le=365 * DAY_S,
        description="seconds without use before a model is unloaded; never, when not set",
    )
    preload: bool = per_model(
        True, description="load it at the start, if it fits, and not at the first request"
    )
    force: bool = per_model(False, description="serve it even if it fails the check at load, with a warning")


@with_own(ServingSettings, RequestDefaults)
class ModelSettings(ScoringSettings):
    """One `[models.NAME]` section: a model and what is special about it. What is not set here is as the
    setting of the same name says for all models."""

    ref: str = Field(
        "", description="the model: a name of `rerankd list`, a GGUF file, or builtin:e5; when empty, NAME"
    )
    aliases: Names = Field((), description="more names the model answers to")


@with_options
class EffectiveModelSettings(ServingSettings, RequestDefaults):
    """One model that is to be served, with all that is set for it. `names` is empty where the user gave it
    none; the first one is shown."""

    ref: str
    names: tuple[str, ...]
    scoring: ScoringSettings

    @property
    def of_engines(self) -> Self:
        """The same without what engines need not know: where this is equal, engines can go on."""
        fields = RequestDefaults.model_fields
        return self.model_copy(update={name: field.default for name, field in fields.items()})
