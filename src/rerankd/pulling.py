"""Pull and check a model with the settings of this machine, for the command line and the admin API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rerankd import config, machine
from rerankd.config import Settings
from rerankd.download import Downloader
from rerankd.errors import FetchError, UnknownModel
from rerankd.formats.metadata import ModelMetadata
from rerankd.hub import hubs, model_ref, remote
from rerankd.hub.choose_files import Choice, quants
from rerankd.hub.pull import Puller, sources_of
from rerankd.hub.store import Record, Store
from rerankd.progress import Progress, silent, step
from rerankd.recipes.resolution import Resolution
from rerankd.service import Reranker
from rerankd.serving import backend_offers
from rerankd.serving.prepare_model import prepare, resolve_file


def pull(
    settings: Settings,
    model: str,
    *,
    say: Callable[[str], None],
    progress: Progress,
    check: Callable[[Path], None] = lambda path: None,
) -> Record:
    """Download a model into the store. `check` runs on the file before it enters the store. Blocks. Raises
    what `Puller.pull`, `progress` and `check` raise."""
    wanted = settings.of(model)
    model_ref.parse(wanted.ref)
    with Downloader(progress=progress) as downloader:
        return Puller(
            store=Store(settings.home),
            hubs=_hubs(),
            downloader=downloader,
            resolve=lambda metadata: resolve_file(metadata, wanted.scoring, section=wanted.section),
            check=check,
            say=say,
            progress=progress,
            memory_bytes=_memory_bytes(settings),
        ).pull(wanted.ref)


@dataclass(frozen=True, slots=True)
class Remote:
    """A model in a repository, before its download.

    `choice` are the files that a pull would download from `source`; `quants` are the quantisations of all
    GGUF files of the repository.
    """

    metadata: ModelMetadata
    resolved: Resolution
    source: model_ref.ModelRef
    choice: Choice
    quants: tuple[str, ...]


def read_remote(settings: Settings, model: str, progress: Progress) -> Remote:
    """Read how a model in a repository would be scored, and which files a pull would download. If a source of
    the catalog can't be reached or lacks the model, the next one is read. Blocks. Raises FetchError,
    UnknownModel and ModelFileError."""
    wanted = settings.of(model)
    sources, default = sources_of(model_ref.parse(wanted.ref))
    with Downloader(progress=progress) as downloader:
        known = _hubs()
        for at, source in enumerate(sources):
            try:
                listing, choice = remote.find(
                    downloader,
                    known,
                    source,
                    progress,
                    default=default,
                    memory_bytes=_memory_bytes(settings),
                )
                with step(progress, f"reading the start of the files of {source.name}"):
                    metadata = remote.read_metadata(
                        downloader, known[source.kind], source.name, listing, choice
                    )
                break
            except (FetchError, UnknownModel):
                if at + 1 == len(sources):
                    raise
    resolved = resolve_file(metadata, wanted.scoring, section=wanted.section)
    return Remote(metadata, resolved, source, choice, quants(listing.files))


def _hubs() -> dict[str, hubs.Hub]:
    for client in ("huggingface_hub", "modelscope_hub"):
        logging.getLogger(client).setLevel(logging.ERROR)
    return {"hf": hubs.HuggingFace(), "ms": hubs.ModelScope()}


def _memory_bytes(settings: Settings) -> int | None:
    """The memory for models; None if GPUs may hold them."""
    return machine.read().memory_bytes if backend_offers.usable_cards(settings) == () else None


def check(settings: Settings, wanted: config.EffectiveModelSettings) -> tuple[str, ...]:
    """Start an engine, check its scores and compare them with a second engine's, even if stored results
    exist. Returns the results in words. Blocks. Raises what starting an engine raises."""
    model = prepare(settings, wanted.model_copy(update={"replicas": 1, "preload": True}))

    async def run() -> tuple[str, ...]:
        reranker = Reranker(settings, prepared=[model])
        served = reranker.registry.models[0]
        tested = served.self_test
        tested.again = True
        async with reranker:
            if tested.doubts:
                return tested.doubts
            comparison = "no second engine can run the model, or memory is too low for one"
            if tested.passed is not None:
                comparison = tested.passed.words
            return ("self-test: passed", f"second engine: {comparison}")

    return asyncio.run(run())


def start_once(
    settings: Settings, path: Path, scoring: config.ScoringSettings, progress: Progress = silent
) -> None:
    """Start an engine with a file, check its scores, and stop it. A patched copy of the file is made if the
    engine needs one. Blocks. Raises what starting an engine raises."""
    alone = {"model": (str(path),), "models": {}, "alias": (), "replicas": 1, "preload": True}
    alone["scoring"] = scoring.model_dump()
    own = config.override(settings, alone)
    model = prepare(own, progress=progress)

    async def run() -> None:
        async with Reranker(own, prepared=[model]):
            pass

    asyncio.run(run())
