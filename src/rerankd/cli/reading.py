"""Read a model's metadata and recipe for a command: from this machine, or from a repository on a hub."""

from __future__ import annotations

from dataclasses import dataclass

from rerankd.config import EffectiveModelSettings, Settings
from rerankd.formats import model_files
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub import model_ref, store
from rerankd.progress import Progress
from rerankd.recipes.resolution import Resolution
from rerankd.serving.prepare_model import resolve_file


@dataclass(frozen=True, slots=True)
class Read:
    """A model and how it is scored. `download_bytes` is the size of the files that `rerankd pull` would
    download, None for a model on this machine."""

    metadata: ModelMetadata
    resolved: Resolution
    download_bytes: int | None = None


def is_remote(settings: Settings, wanted: EffectiveModelSettings) -> bool:
    """Whether the model is in a repository on a hub, and was not pulled. Raises UnknownModel for an invalid
    reference."""
    is_on_hub = model_ref.parse(wanted.ref).kind in model_ref.HUBS
    return is_on_hub and store.Store(settings.home).find(wanted.ref) is None


def read(settings: Settings, model: str, progress: Progress) -> Read:
    """Read the model that the user refers to as `model`; of a repository, only the start of each file.
    Raises what `Store.locate`, `model_files.read` and `pulling.read_remote` raise."""
    wanted = settings.of(model)
    if is_remote(settings, wanted):
        from rerankd import pulling  # imports the hubs' clients, which takes a second

        metadata, resolved, choice = pulling.read_remote(settings, model, progress)
        return Read(metadata, resolved, choice.size_bytes)
    path = store.Store(settings.home).locate(wanted.ref, progress, settings.builtin_wheel)
    metadata = model_files.read(path)
    return Read(metadata, resolve_file(metadata, wanted.scoring))
