"""Read a model's metadata and recipe for a command: from this machine, or from a repository on a hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rerankd.cli.cascades import of_model
from rerankd.config import EffectiveModelSettings, Settings
from rerankd.formats import model_files
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub import choose_files, model_ref, store
from rerankd.progress import Progress, size_words
from rerankd.recipes import catalog
from rerankd.recipes.resolution import Resolution
from rerankd.serving.prepare_model import resolve_file

if TYPE_CHECKING:
    from rerankd.pulling import Remote


@dataclass(frozen=True, slots=True)
class Read:
    """A model and how it is scored. `remote` is where it can be pulled from, None for a model on this
    machine."""

    metadata: ModelMetadata
    resolved: Resolution
    remote: Remote | None = None

    @property
    def place(self) -> str:
        """Where the model is: its path, or the repository with the files that a pull would download."""
        if self.remote is None:
            return str(self.metadata.path)
        source, choice = self.remote.source, self.remote.choice
        name = f"{choice.files[0].path}, " if self.metadata.format == "gguf" else ""
        parts = f" in {len(choice.files)} parts" if name and len(choice.files) > 1 else ""
        chosen = choose_files.quant_of(choice.files[0].path.removesuffix(".gguf"))
        others = [quant for quant in self.remote.quants if quant != chosen]
        more = f"; also there: {', '.join(others)}" if others else ""
        where = f"{source.kind}:{source.name}"
        return f"{where}: {name}{size_words(choice.size_bytes)}{parts} ({choice.why}){more}"


def is_remote(settings: Settings, wanted: EffectiveModelSettings) -> bool:
    """Whether the model is in a repository on a hub or in the catalog, and was not pulled. Raises
    UnknownModel for an invalid reference."""
    ref = model_ref.parse(wanted.ref)
    if not ref.is_pullable or store.Store(settings.home).find(wanted.ref) is not None:
        return False
    if ref.kind in model_ref.HUBS:
        return True
    entry = catalog.known().find(ref.name)
    if entry is None or model_files.exists(Path(wanted.ref)):
        return False
    return bool(entry.refused) or any(model_ref.parse(one).kind in model_ref.HUBS for one in entry.refs)


def read(settings: Settings, model: str, progress: Progress) -> Read:
    """Read the model that the user refers to as `model`; of a repository, only the start of each file.
    Raises what `Store.locate`, `model_files.read` and `pulling.read_remote` raise."""
    wanted = of_model(settings, model)
    if is_remote(settings, wanted):
        from rerankd import pulling  # imports the hubs' clients, which takes a second

        found = pulling.read_remote(settings, model, progress)
        return Read(found.metadata, found.resolved, found)
    path = store.Store(settings.home).locate(wanted.ref, progress, settings.builtin_wheel)
    metadata = model_files.read(path)
    return Read(metadata, resolve_file(metadata, wanted.scoring, wanted.calibration, wanted.section))
