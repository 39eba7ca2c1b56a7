"""The engines on this disk: `engines/` of the data folder, one folder each, and the name of the one to use.

A folder that begins with a dot is work under way (see build/): only whole, smoke-tested engines have a name.
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
    """What lies in `engines/` of a data folder."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "engines"

    def all(self) -> list[Installed]:
        """Every engine, the newest build first; what is not whole is left out."""
        found = []
        for path in self.folder.glob(f"[!.]*/{manifest.FILE}"):
            with contextlib.suppress(OSError, ValueError):
                known = manifest.parse(path.read_text(encoding="utf-8-sig"))
                program = path.with_name(manifest.PROGRAM)
                if known.name == path.parent.name and os.access(program, os.X_OK):
                    found.append(Installed(program, known))
        return sorted(found, key=lambda one: (one.manifest.build, one.manifest.made_at), reverse=True)

    def find(self, name: str) -> Installed:
        """The engine of that name, or of the only name that begins so. Raises EngineUnknown."""
        engines = self.all()
        named = [one for one in engines if one.name == name] or [
            one for one in engines if one.name.startswith(name)
        ]
        if len(named) == 1:
            return named[0]
        known = ", ".join((BUNDLED, *(one.name for one in engines)))
        problem = f"{name!r} begins the names of several engines" if named else f"There is no engine {name!r}"
        raise EngineUnknown(f"{problem}. There are: {known}.")

    def used(self) -> str:
        """The name that `use` left; "" where rerankd chooses."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self.folder / _USED).read_text(encoding="utf-8-sig").strip()
        return ""

    def use(self, name: str) -> str:
        """Use this engine from now on, `bundled` for the one that comes with rerankd, `auto` to have rerankd
        choose. Returns its whole name. Raises EngineUnknown and DataFolderError."""
        whole = name if name in (BUNDLED, AUTO) else self.find(name).name
        with disk_errors(f"{self.folder} can't be written"):
            self.folder.mkdir(parents=True, exist_ok=True)
            if whole == AUTO:
                (self.folder / _USED).unlink(missing_ok=True)
            else:
                write_whole(self.folder / _USED, f"{whole}\n".encode())
        return whole

    def remove(self, name: str) -> Installed:
        """Delete an engine; when it was the one to use, rerankd chooses again. Raises EngineUnknown and
        DataFolderError."""
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
    """The llama.cpp inside the wheel xllamacpp, whose version ends in llama.cpp's build number."""
    from importlib import metadata

    with contextlib.suppress(metadata.PackageNotFoundError):
        last = metadata.version("xllamacpp").rpartition(".")[2]
        program = (sys.executable, "-P", "-m", "rerankd.backends.llama.bundled")
        return Binary(BUNDLED, program, "it comes with rerankd", int(last) if last.isdigit() else 0)
    return None


def build_number(program: Path) -> int:
    """What a llama-server says its build number is; 0 where it does not say."""
    match = _BUILD.search(processes.output([str(program), "--version"], timeout_s=20))
    return int(next(filter(None, match.groups()))) if match else 0


def survey(options: LlamaOptions, home: Path, needs: int = 0) -> Binaries:
    """What there is to choose from, for a model that needs build `needs`. The GPUs and the number of a user's
    program are only looked at where they matter: that takes about a second."""
    engines = Engines(home)
    found = engines.all()
    own = options.llama_path
    asks = options.gpu_layers != 0 and (own or any(one.manifest.backend == "cuda" for one in found))
    return Binaries(
        own=own,
        own_build=build_number(own) if own and needs else 0,
        used=engines.used(),
        installed=found,
        bundled=bundled(),
        gpus=machine.gpus() if asks else (),
        instructions=machine.instructions(),
    )


def chosen(options: LlamaOptions, home: Path) -> Binary:
    """The program that runs the models. Raises EngineUnknown where there is none."""
    return without_gpu(choose(survey(options, home)), options)


def without_gpu(binary: Binary, options: LlamaOptions) -> Binary:
    """The program as the settings let it run: without a GPU where no layer may go there."""
    return replace(binary, gpus=()) if options.gpu_layers == 0 else binary


def installations(options: LlamaOptions, home: Path) -> list[Installation]:
    """Every llama.cpp on this machine. Raises EngineUnknown where there is none."""
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
    """What a folder holds."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
