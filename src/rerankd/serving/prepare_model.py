"""Prepare a model to be served: find the file, read its metadata, decide how it is scored and which backend
runs it."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path

from rerankd import machine
from rerankd.backends import select
from rerankd.backends.base import EngineSpec, Offer
from rerankd.backends.select import Selection
from rerankd.config import EffectiveModelSettings, ScoringSettings, Settings
from rerankd.domain import Recipe
from rerankd.errors import DataFolderError, ModelFileError, UnknownModel
from rerankd.formats import model_files
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub import store
from rerankd.normalization import Calibration
from rerankd.progress import Progress, silent
from rerankd.recipes import calibrations, catalog
from rerankd.recipes.partial_recipe import PartialRecipe
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.resolve import resolve
from rerankd.serving import backend_offers

_HEADER_BYTES = 64 * 2**10

_log = logging.getLogger("rerankd")


@dataclass(frozen=True, slots=True)
class Model:
    """A model that can be served: its names (the displayed one first), its file or folder, its recipe, and
    the backend that runs it. `fingerprint` identifies the file (see scoring/cache.py). `changed_at` is when
    the file was last modified, in seconds since 1970. `selection` is the chosen backend."""

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
    """The models to serve, according to the settings and the downloaded files."""
    return settings.wanted(store.Store(settings.home).default())


def prepare_first(settings: Settings, progress: Progress = silent) -> tuple[str, list[Model]]:
    """Prepare the first model of the settings, or the models of all stages of the first cascade. Returns its
    displayed name, and the models. Raises what `prepare` raises."""
    cascade = settings.first_cascade
    if cascade is None:
        model = prepare(settings, None, progress)
        return model.name, [model]
    stages = [prepare(settings, settings.of(stage.model), progress) for stage in cascade.stages]
    return cascade.name, stages


def prepare(
    settings: Settings,
    model: EffectiveModelSettings | None = None,
    progress: Progress = silent,
    *,
    copies: bool = True,
) -> Model:
    """Find a model, download it if it is the built-in one, and decide how it is scored. None means the first
    model of the settings. If `copies` is true, the model is about to be loaded: speeds that are not known yet
    are measured, and if its engine needs a patched copy of the file, the copy is made unless it exists.

    Blocks while it reads, downloads and copies. Raises the errors of the data folder, the model file and the
    download, Unscorable if the file can't be scored correctly, and ConfigError if the requested engine can't
    run it.
    """
    model = model or wanted(settings)[0]
    folders = store.Store(settings.home)
    # A downloaded model can also be served from a read-only folder. If a later step must write there, that
    # step reports the error.
    with contextlib.suppress(DataFolderError):
        folders.check_writable()
    path = folders.locate(model.ref, progress, settings.builtin_wheel)
    file_fingerprint = fingerprint(path)
    metadata = model_files.read(path)
    resolved = resolve_file(metadata, model.scoring, model.calibration, model.section)
    memory = machine.read().memory_bytes
    names = names_of(model)
    spec = backend_offers.spec(names[0], path, metadata, resolved, model, file_fingerprint)
    answers = backend_offers.all_offers(spec, model, settings.home, measure=copies)
    selection = select.choose(model.engine, answers)
    if memory is not None and metadata.size_bytes > memory and selection.offer.on_cpu:
        raise ModelFileError(
            f"{path.name} has {metadata.size_bytes / 2**30:.1f} GiB, but this machine has only "
            f"{memory / 2**30:.1f} GiB of memory. Use a smaller quantisation or a smaller model."
        )
    if copies and (words := backend_offers.unused_words(selection.offer)):
        _log.warning("%s runs on %s, where %s", names[0], selection.offer.title, words)
    if selection.offer.patch is not None and copies:
        selection = _with_copy(selection, metadata, folders, progress)
    return Model(
        names,
        path,
        metadata,
        resolved,
        spec.recipe,
        model,
        file_fingerprint,
        spec,
        selection,
        changed_at=_changed_at(path),
    )


def _with_copy(
    selection: Selection, metadata: ModelMetadata, folders: store.Store, progress: Progress
) -> Selection:
    """Make the patched copy that the selected engine loads. Another engine may need another copy, so there is
    no fallback."""
    offer = selection.offer
    assert offer.patch is not None
    path = folders.copies.ensure(metadata.parts, offer.patch, progress)
    return replace(selection, offer=replace(offer, spec=replace(offer.spec, path=path)), fallback=None)


def names_of(model: EffectiveModelSettings) -> tuple[str, ...]:
    """All names of a model, the displayed one first, whether or not its file exists."""
    try:
        return model.names or (store.display_name(model.ref),)
    except UnknownModel:  # the reference is invalid: the model will be refused under this name
        return (model.ref,)


def _changed_at(path: Path) -> int:
    try:
        return int(path.stat().st_mtime)
    except OSError:  # it was just deleted; `fingerprint` detects that
        return 0


def resolve_file(
    metadata: ModelMetadata,
    scoring: ScoringSettings,
    calibration: Calibration | None = None,
    section: str = "",
) -> Resolution:
    """How a file is scored, according to its metadata, the catalog and the settings. With a calibration, the
    file must be on this machine: it is read to check that the calibration is this model's. `section` is the
    NAME of the model's [models.NAME] section."""
    resolved = resolve(metadata, catalog.known(), PartialRecipe(**scoring.model_dump()))
    return calibrations.with_calibration(replace(resolved, section=section), metadata, calibration)


def resolve_model(settings: Settings, metadata: ModelMetadata, model: str) -> Resolution:
    """How a file is scored, with the settings for the model that the user refers to as `model`."""
    wanted = settings.of(model)
    return resolve_file(metadata, wanted.scoring, wanted.calibration, wanted.section)


def fingerprint(path: Path) -> str:
    """A fingerprint of a model's file, with a head beside it, or of its folder: path, size, modification time
    and header. A missing file has the fingerprint "no PATH"."""
    return " ".join(map(_fingerprint, model_files.files(path))) or f"no {path}"


def _fingerprint(path: Path) -> str:
    try:
        status = path.stat()
        with path.open("rb") as stream:
            header = hashlib.blake2b(stream.read(_HEADER_BYTES), digest_size=16).hexdigest()
    except OSError:
        return f"no {path}"
    return f"{path} {status.st_size} {status.st_mtime_ns} {header}"
