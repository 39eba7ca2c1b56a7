"""Find the CUDA toolkit for a build, and download its missing parts from the package index.

NVIDIA's wheels for CUDA 13 contain the compiler, headers and libraries, but neither the file names that a
linker searches (`libcublas.so` for `libcublas.so.13`) nor the driver's stub library. `unpack` creates those
names. Without the stub, llama.cpp is built so that it does not link the driver's library (GGML_CUDA_NO_VMM).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rerankd import pip, processes
from rerankd.errors import BuildFailed, disk_errors
from rerankd.machine import Gpu
from rerankd.progress import Progress

_RELEASE = re.compile(r"release (\d+)\.(\d+)")
_TIMEOUT_S = 20.0
_COMPILER_WHEELS = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-cccl")
_RUNTIME_WHEEL, _CUBLAS_WHEEL = "nvidia-cuda-runtime", "nvidia-cublas"
# The wheels of CUDA 12 do not contain nvcc.
_FIRST_WITH_WHEELS = 13
_DEFAULT_RELEASE = (13, 0)
# The oldest Linux driver for each CUDA release (NVIDIA's release notes, minor version compatibility).
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
# The first CUDA release that compiles for a GPU, by compute capability, and the oldest GPU that CUDA 13
# supports (Turing).
_CARDS = ((120, (12, 8)), (100, (12, 8)), (89, (11, 8)), (0, (11, 0)))
_OLDEST_CARD_OF_13 = 75


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A CUDA toolkit: `nvcc` and its root folder, the release such as (13, 0), the libraries that llama.cpp
    links (None if missing), and additional header folders."""

    nvcc: Path
    root: Path
    release: tuple[int, int]
    cudart: Path | None = None
    cublas: Path | None = None
    stub: Path | None = None
    includes: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        return f"CUDA {self.release[0]}.{self.release[1]}"


def find(environ: Mapping[str, str], home: Path | None = None) -> Toolkit | None:
    """Find the first toolkit with an nvcc: in `home`, CUDA_HOME or CUDA_PATH, on PATH, or in
    /usr/local/cuda*. Raises BuildFailed if `home` has none."""
    named = home or environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    places = [Path(named) / "bin" / "nvcc"] if named else []
    if home is None:
        on_path = shutil.which("nvcc", path=environ.get("PATH", os.defpath))
        places += [Path(on_path)] if on_path else []
        newest_first = sorted(Path("/usr/local").glob("cuda*/bin/nvcc"), reverse=True)
        places += [Path("/usr/local/cuda/bin/nvcc"), *newest_first]
    for place in places:
        if (toolkit := _read(place)) is not None:
            return toolkit
    if home is not None:
        raise BuildFailed(f"{home / 'bin'} has no nvcc. Pass the toolkit's folder as --cuda-home.")
    return None


def lacks(toolkit: Toolkit | None) -> list[str]:
    """(pure) List the missing parts of a toolkit, in words."""
    if toolkit is None:
        return ["nvcc"]
    return [
        name
        for name, library in (("the CUDA runtime", toolkit.cudart), ("cuBLAS", toolkit.cublas))
        if library is None
    ]


def wheels(toolkit: Toolkit | None) -> tuple[tuple[int, int], list[str]]:
    """(pure) Return the CUDA release and the wheels (pip requirements) that complete a toolkit.

    If only cuBLAS is missing, it is the only wheel; else all wheels, so that all parts have the same release.
    Raises BuildFailed for a CUDA release whose wheels contain no compiler.
    """
    release = toolkit.release if toolkit is not None else _DEFAULT_RELEASE
    if release[0] < _FIRST_WITH_WHEELS:
        raise BuildFailed(
            f"CUDA {release[0]}.{release[1]} can't be completed from the package index: wheels before CUDA "
            f"{_FIRST_WITH_WHEELS} contain no compiler. Install the rest of the toolkit (rerankd doctor "
            "prints the commands)."
        )
    names: Sequence[str] = (*_COMPILER_WHEELS, _RUNTIME_WHEEL, _CUBLAS_WHEEL)
    if toolkit is not None and lacks(toolkit) == ["cuBLAS"]:
        names = (_CUBLAS_WHEEL,)
    return release, [f"{name}=={release[0]}.{release[1]}.*" for name in names]


def architectures(asked: str | None, gpus: Sequence[Gpu]) -> str:
    """(pure) Return CMAKE_CUDA_ARCHITECTURES: the value of --cuda-arch, else the architectures of all GPUs.

    Raises BuildFailed if there is neither.
    """
    if asked:
        if not re.fullmatch(r"\d{2,3}[a-z]?(-real|-virtual)?([;,]\d{2,3}[a-z]?(-real|-virtual)?)*", asked):
            raise BuildFailed(
                f"--cuda-arch {asked} is invalid. For a GPU of compute capability 8.9, pass 89."
            )
        return asked.replace(",", ";")
    found = sorted({gpu.compute_capability.replace(".", "") for gpu in gpus}, key=int)
    if not found:
        raise BuildFailed(
            "nvidia-smi finds no NVIDIA GPU, so the CUDA architecture is unknown. Pass the GPU's compute "
            "capability: --cuda-arch 89 for 8.9."
        )
    return ";".join(found)


def complete(toolkit: Toolkit | None, folder: Path, report: Progress) -> Toolkit:
    """Complete a toolkit with wheels from the package index, unpacked below `folder`.

    Downloads about 500 MB, once. Raises BuildFailed, FetchError and DataFolderError.
    """
    release, requirements = wheels(toolkit)
    root = folder / f"cuda-{release[0]}.{release[1]}-{len(requirements)}"
    if not root.is_dir():
        with disk_errors(f"The CUDA toolkit could not be written to {folder}", "It needs about 2 GB."):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".part-", dir=folder) as scratch:
                found: list[Path] = []
                for at, requirement in enumerate(requirements):
                    report(f"downloading the CUDA toolkit ({requirement})", at, len(requirements))
                    found.append(pip.download(requirement, Path(tempfile.mkdtemp(dir=scratch))))
                unpack(found, Path(scratch) / "root")
                os.rename(Path(scratch) / "root", root)
    if toolkit is None or len(requirements) > 1:
        whole = _read(root / "bin" / "nvcc")
        if whole is None or lacks(whole):
            raise BuildFailed(f"The CUDA toolkit in {root} is incomplete. Delete that folder and try again.")
        return whole
    return replace(toolkit, cublas=_library(root, "cublas"), includes=(root / "include",))


def unpack(files: Sequence[Path], root: Path) -> None:
    """Unpack NVIDIA's wheels into the layout of a toolkit: bin, include, lib, nvvm. Raises OSError."""
    for file in files:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                # nvidia/cu13/include/cublas.h
                parts = Path(member.filename).parts
                if len(parts) < 4 or parts[0] != "nvidia" or member.is_dir() or ".." in parts:
                    continue
                target = root.joinpath(*parts[2:])
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as stream, target.open("wb") as out:
                    shutil.copyfileobj(stream, out)
                mode = member.external_attr >> 16 & 0o777
                in_bin = "bin" in target.relative_to(root).parts
                target.chmod(mode | 0o755 if in_bin else mode or 0o644)
    for library in root.glob("lib/lib*.so.*"):
        name = library.with_name(library.name.partition(".so.")[0] + ".so")
        if not name.exists():
            name.symlink_to(library.name)
    if (root / "lib").is_dir() and not (root / "lib64").exists():
        (root / "lib64").symlink_to("lib")


def driver_runs(driver: str, release: tuple[int, int]) -> bool:
    """(pure) Whether a driver such as "570.133.07" runs programs of this CUDA release."""
    major = driver.partition(".")[0]
    return not major.isdigit() or int(major) >= OLDEST_DRIVERS.get(release[0], 0)


def compiles_for(release: tuple[int, int], capability: str) -> bool:
    """(pure) Whether this CUDA release compiles for a GPU of this compute capability."""
    card = int(capability.replace(".", ""))
    first = next(first for oldest, first in _CARDS if card >= oldest)
    return release >= first and not (release[0] >= 13 and card < _OLDEST_CARD_OF_13)


def release_of(text: str) -> tuple[int, int] | None:
    """(pure) Parse the release from the output of `nvcc --version`."""
    match = _RELEASE.search(text)
    return (int(match[1]), int(match[2])) if match else None


def _read(nvcc: Path) -> Toolkit | None:
    if not os.access(nvcc, os.X_OK):
        return None
    release = release_of(processes.output([str(nvcc), "--version"], _TIMEOUT_S))
    if release is None:
        return None
    root = nvcc.resolve().parent.parent
    if not (root / "include" / "cuda_runtime.h").is_file():
        # The nvcc on PATH is a wrapper around the toolkit's own.
        others = sorted(Path("/usr/local").glob(f"cuda-{release[0]}.{release[1]}*"))
        root = others[0] if others else root
    stub = next(iter(root.glob("lib*/stubs/libcuda.so")), None)
    has_header = any(
        (root / folder / "cublas_v2.h").is_file() for folder in ("include", "targets/x86_64-linux/include")
    )
    return Toolkit(
        nvcc=root / "bin" / "nvcc" if (root / "bin" / "nvcc").is_file() else nvcc,
        root=root,
        release=release,
        cudart=_library(root, "cudart"),
        cublas=_library(root, "cublas") if has_header else None,
        stub=stub,
    )


def _library(root: Path, name: str) -> Path | None:
    places = (root / "lib64", root / "lib", *root.glob("targets/*/lib"))
    return next((place / f"lib{name}.so" for place in places if (place / f"lib{name}.so").exists()), None)
