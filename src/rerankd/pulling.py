"""A pull with everything it needs, built from the settings: for the command line and for the admin API."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

from rerankd import config, machine
from rerankd.config import Settings
from rerankd.download import Downloader
from rerankd.hub import hubs, model_ref
from rerankd.hub.pull import Puller
from rerankd.hub.store import Record, Store
from rerankd.progress import Progress
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
    """Fetch a model into the store. `check` is the last word on the file. Blocks; raises what
    `Puller.pull` does, and what `progress` or `check` raise."""
    for client in ("huggingface_hub", "modelscope_hub"):
        logging.getLogger(client).setLevel(logging.ERROR)
    wanted = settings.of(model)
    model_ref.parse(wanted.ref)
    with Downloader(progress=progress) as downloader:
        return Puller(
            store=Store(settings.home),
            hubs={"hf": hubs.HuggingFace(), "ms": hubs.ModelScope()},
            downloader=downloader,
            resolve=lambda metadata: resolve_file(metadata, wanted.scoring),
            check=check,
            say=say,
            progress=progress,
            memory_bytes=machine.read().memory_bytes if backend_offers.usable_cards(settings) == () else None,
        ).pull(wanted.ref)


def check(settings: Settings, wanted: config.EffectiveModelSettings) -> tuple[str, ...]:
    """Start an engine, check its scores, and have a second engine score the same pairs where one can,
    whatever was found earlier. Returns in words what was checked. Blocks; raises what a start raises."""
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
            return ("check at load: passed", f"self-test: {comparison}")

    return asyncio.run(run())


def start_once(settings: Settings, path: Path, scoring: config.ScoringSettings) -> None:
    """Start an engine with a file that is scored so, check its scores, and stop it. Blocks; raises what a
    start raises."""

    async def run() -> None:
        alone = {"model": (str(path),), "models": {}, "alias": (), "replicas": 1, "preload": True}
        alone["scoring"] = scoring.model_dump()
        async with Reranker(config.override(settings, alone)):
            pass

    asyncio.run(run())
