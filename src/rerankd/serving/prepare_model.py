"""From what a user names to a model that can be served: find the file, read its header, decide how it is
scored."""

from __future__ import annotations

import contextlib
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from rerankd import machine
from rerankd.backends import select
from rerankd.backends.base import EngineSpec, Offer
from rerankd.backends.select import Selection
from rerankd.config import EffectiveModelSettings, ScoringSettings, Settings
from rerankd.domain import Recipe
from rerankd.errors import DataFolderError, ModelFileError, UnknownModel
from rerankd.formats import checkpoint_files, model_files
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub import store
from rerankd.progress import Progress, silent
from rerankd.recipes import catalog
from rerankd.recipes.partial_recipe import PartialRecipe
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.resolve import resolve
from rerankd.serving import backend_offers

_HEADER_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be served: its names (the shown one first), its file or folder, how it is scored, and
    the engine that runs it. `fingerprint` tells the file from another one at a glance (see scoring/cache.py).
    `changed_at` is when the file was last written, in seconds since 1970. `selection` is what runs it."""

    names: tuple[str, ...]
    path: Path
    metadata: ModelMetadata
    resolution: Resolution
    recipe: Recipe
    wanted: EffectiveModelSettings
    fingerprint: str
    spec: EngineSpec
    selection: Selection
    changed_at: int = 0

    @property
    def engine(self) -> Offer:
        """How it runs."""
        return self.selection.offer

    @property
    def name(self) -> str:
        return self.names[0]


def wanted(settings: Settings) -> tuple[EffectiveModelSettings, ...]:
    """The models that are to be served, by the settings and what is on this disk."""
    return settings.wanted(store.Store(settings.home).default())


def prepare(
    settings: Settings,
    model: EffectiveModelSettings | None = None,
    progress: Progress = silent,
) -> Model:
    """Find a model, fetch it if it is the built-in one, and decide how it is scored. None is the first one
    that the settings want.

    Blocks while it reads and fetches. Raises the errors of the data folder, the model file and the download,
    Unscorable where no right score can come of it, and ConfigError where the engine that is wanted can't run
    it.
    """
    model = model or wanted(settings)[0]
    folders = store.Store(settings.home)
    # A model that is there is served from a read-only folder, too. Who has to write says why that fails.
    with contextlib.suppress(DataFolderError):
        folders.check_writable()
    path = folders.locate(model.ref, progress, settings.builtin_wheel)
    made = fingerprint(path)
    metadata = model_files.read(path)
    resolved = resolve_file(metadata, model.scoring)
    memory = machine.read().memory_bytes
    names = names_of(model)
    spec = backend_offers.spec(names[0], path, metadata, resolved, model, made)
    selection = select.choose(model.engine, backend_offers.all_offers(spec, model, settings.home))
    if memory is not None and metadata.size_bytes > memory and selection.offer.on_cpu:
        raise ModelFileError(
            f"{path.name} has {metadata.size_bytes / 2**30:.1f} GiB, more than the "
            f"{memory / 2**30:.1f} GiB of memory this machine has. Take a smaller quantisation or "
            "a smaller model."
        )
    return Model(
        names,
        path,
        metadata,
        resolved,
        spec.recipe,
        model,
        made,
        spec,
        selection,
        changed_at=_changed_at(path),
    )


def names_of(model: EffectiveModelSettings) -> tuple[str, ...]:
    """All names it will answer to, the shown one first, whether or not there is a file."""
    try:
        return model.names or (store.display_name(model.ref),)
    except UnknownModel:  # what it is called by names nothing: it will be refused, under these words
        return (model.ref,)


def _changed_at(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:  # it went just now; `fingerprint` notices
        return 0


def resolve_file(metadata: ModelMetadata, scoring: ScoringSettings) -> Resolution:
    """How a file is scored, by its metadata, the catalog and the settings."""
    return resolve(metadata, catalog.known(), PartialRecipe(**scoring.model_dump()))


def resolve_model(settings: Settings, metadata: ModelMetadata, model: str) -> Resolution:
    """How a file is scored with what is set for the model that the user calls so."""
    return resolve_file(metadata, settings.of(model).scoring)


def fingerprint(path: Path) -> str:
    """What tells a model's file from another one at a glance, or a folder's; of no file, that there is
    none."""
    if path.is_dir():
        return (
            " ".join(fingerprint(path / name) for name in checkpoint_files.files(os.listdir(path)))
            or f"no {path}"
        )
    try:
        status = path.stat()
        with path.open("rb") as stream:
            header = hashlib.blake2b(stream.read(_HEADER_BYTES), digest_size=16).hexdigest()
    except OSError:
        return f"no {path}"
    return f"{path} {status.st_size} {status.st_mtime_ns} {header}"
