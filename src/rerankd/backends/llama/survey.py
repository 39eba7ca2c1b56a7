"""Collect doctor's observations for llama.cpp: CPU, GPUs, build tools, engines. Changes nothing."""

from __future__ import annotations

import contextlib
import os
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rerankd import machine
from rerankd.backends.base import Checkup
from rerankd.backends.llama import installed
from rerankd.backends.llama.binaries import BUNDLED, Binary, runs_here
from rerankd.backends.llama.build import cuda, index, smoke, tools
from rerankd.backends.llama.build.source import PINNED
from rerankd.backends.llama.checks import Seen, SeenEngine
from rerankd.backends.llama.options import LlamaOptions
from rerankd.errors import EngineError, RerankdError
from rerankd.progress import Progress


def look(options: LlamaOptions, home: Path, checkup: Checkup) -> Seen:
    """Collect the input of the checks. Takes some seconds, mostly for the smoke tests of the engines."""
    choice, choice_problem = _choice(options, home)
    return Seen(
        instructions=machine.instructions(),
        architecture=platform.machine(),
        release=_release(),
        gpus=machine.gpus(),
        toolkit=cuda.find(os.environ),
        tools=tools.find(os.environ),
        engines=_engines(options, home, choice, checkup.report),
        choice=choice,
        choice_problem=choice_problem,
        sources=index.problem(PINNED) if checkup.online else None,
    )


def _release() -> dict[str, str]:
    with contextlib.suppress(OSError):
        return platform.freedesktop_os_release()
    return {}


def _choice(options: LlamaOptions, home: Path) -> tuple[Binary | None, str]:
    try:
        return installed.chosen(options, home), ""
    except EngineError as error:
        return None, error.message


def _engines(
    options: LlamaOptions, home: Path, choice: Binary | None, report: Progress
) -> tuple[SeenEngine, ...]:
    instructions = machine.instructions()
    found: list[tuple[str, int, Sequence[str]]] = []
    if choice is not None and options.llama_path:
        found.append((choice.name, installed.build_number(options.llama_path), choice.program))
    for one in installed.Engines(home).all():
        program = (str(one.program),) if runs_here(one, instructions) else ()
        found.append((one.name, one.manifest.build, program))
    if (bundled := installed.bundled()) is not None:
        found.append((BUNDLED, bundled.build, bundled.program))
    tested = []
    with tempfile.TemporaryDirectory(prefix="rerankd-doctor-") as folder:
        for at, (name, build, argv) in enumerate(found):
            report("testing the engines", at, len(found))
            tested.append(SeenEngine(name, build, _outcome(argv, Path(folder)) if argv else None))
        report("testing the engines", len(found), len(found))
    return tuple(tested)


def _outcome(program: Sequence[str], folder: Path) -> smoke.Outcome:
    try:
        return smoke.run(program, folder / "smoke.log")
    except RerankdError as error:
        return smoke.Outcome(False, error.message)
