"""Find the build tools for llama.cpp: cmake, ninja or make, a C++ compiler, ccache, git.

cmake and ninja are also found in rerankd's own Python environment: `pip install cmake ninja` needs no root.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rerankd import processes
from rerankd.errors import BuildFailed

_TIMEOUT_S = 20.0
_VERSION = re.compile(r"\d+\.\d+(\.\d+)?")
# Required by the CMakeLists.txt of llama.cpp's CUDA backend, which needs the newest cmake.
OLDEST_CMAKE = (3, 18)
_APT = "On Debian and Ubuntu: sudo apt install {}"

Generator = Literal["Ninja", "Unix Makefiles"]


@dataclass(frozen=True, slots=True)
class Tools:
    """The paths of the programs, "" if missing. `compiler` is the first line of the C++ compiler's
    --version."""

    cmake: str = ""
    cmake_version: str = ""
    ninja: str = ""
    make: str = ""
    cc: str = ""
    cxx: str = ""
    compiler: str = ""
    ccache: str = ""
    git: str = ""

    @property
    def generator(self) -> Generator:
        return "Ninja" if self.ninja else "Unix Makefiles"


def find(environ: Mapping[str, str]) -> Tools:
    """Find the programs on PATH and beside this Python."""
    # pip installs programs beside Python, even if that environment is not on PATH.
    path = os.pathsep.join((environ.get("PATH", os.defpath), str(Path(sys.executable).parent)))

    def which(*names: str) -> str:
        return next(filter(None, (shutil.which(name, path=path) for name in names)), "")

    cmake = which("cmake")
    cxx = which(environ.get("CXX", "c++"), "g++", "clang++")
    return Tools(
        cmake=cmake,
        cmake_version=_version(cmake),
        ninja=which("ninja"),
        make=which("gmake", "make"),
        cc=which(environ.get("CC", "cc"), "gcc", "clang"),
        cxx=cxx,
        compiler=_first_line(cxx),
        ccache=which("ccache"),
        git=which("git"),
    )


def missing(tools: Tools) -> list[str]:
    """(pure) Return a sentence for each missing tool, with the command that installs it."""
    found = []
    if not (tools.cmake and tools.cmake_version):
        found.append("cmake is missing. " + _APT.format("cmake") + "; without root: pip install cmake ninja")
    elif tuple(map(int, tools.cmake_version.split(".")[:2])) < OLDEST_CMAKE:
        oldest = ".".join(map(str, OLDEST_CMAKE))
        found.append(f"cmake {tools.cmake_version} is older than {oldest}. Update it: pip install cmake")
    if not (tools.cc and tools.cxx and tools.compiler):
        found.append("A C++ compiler is missing. " + _APT.format("g++"))
    if not (tools.ninja or tools.make):
        found.append(
            "Both ninja and make are missing. "
            + _APT.format("ninja-build")
            + "; without root: pip install ninja"
        )
    return found


def check(tools: Tools) -> Tools:
    """Return the tools if none is missing. Raises BuildFailed."""
    if sentences := missing(tools):
        raise BuildFailed("llama.cpp can't be built here:\n" + "\n".join(f"  {one}" for one in sentences))
    return tools


def _version(program: str) -> str:
    match = _VERSION.search(processes.output([program, "--version"], _TIMEOUT_S)) if program else None
    return match[0] if match else ""


def _first_line(program: str) -> str:
    output = processes.output([program, "--version"], _TIMEOUT_S) if program else ""
    return output.splitlines()[0].strip() if output.strip() else ""
