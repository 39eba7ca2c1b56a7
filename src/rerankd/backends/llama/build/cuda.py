"""The CUDA toolkit that a build uses: where it is, what it lacks, and the rest of it from the package index.

NVIDIA's wheels for CUDA 13 hold the compiler, headers and libraries, but not the names that a linker looks
for (`libcublas.so` for `libcublas.so.13`), nor the driver's stub. Those names are made here; without the stub
llama.cpp is built so that it does not ask for the driver's library (GGML_CUDA_NO_VMM).
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
# The wheels of CUDA 12 hold no nvcc.
_FIRST_WITH_WHEELS = 13
_DEFAULT_RELEASE = (13, 0)
# The oldest driver of Linux for each CUDA (NVIDIA's release notes, minor version compatibility).
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
# The first CUDA that compiles for a card, by compute capability, and the oldest card of CUDA 13 (Turing).
_CARDS = ((120, (12, 8)), (100, (12, 8)), (89, (11, 8)), (0, (11, 0)))
_OLDEST_CARD_OF_13 = 75


@dataclass(frozen=True, slots=True)
class Toolkit:
    """A CUDA toolkit: `nvcc` and the folder it belongs to, its release such as (13, 0), the libraries that
    llama.cpp links, None for what is not there, and the folders of headers beyond nvcc's own."""

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
    """The toolkit in `home`, of CUDA_HOME or CUDA_PATH, on PATH, or in /usr/local/cuda*; the first that has
    an nvcc. Raises BuildFailed where `home` has none."""
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
        raise BuildFailed(f"There is no nvcc in {home / 'bin'}. --cuda-home names the toolkit's folder.")
    return None


def lacks(toolkit: Toolkit | None) -> list[str]:
    """(pure) What of a toolkit is not there, in words."""
    if toolkit is None:
        return ["nvcc"]
    return [
        name
        for name, library in (("the CUDA runtime", toolkit.cudart), ("cuBLAS", toolkit.cublas))
        if library is None
    ]


def wheels(toolkit: Toolkit | None) -> tuple[tuple[int, int], list[str]]:
    """(pure) The release to complete a toolkit to, and the wheels that are missing, as pip names them.

    Where only cuBLAS is missing, only it is taken; else the whole set, so that all parts are of one release.
    Raises BuildFailed where the toolkit is of a CUDA whose wheels hold no compiler.
    """
    release = toolkit.release if toolkit is not None else _DEFAULT_RELEASE
    if release[0] < _FIRST_WITH_WHEELS:
        raise BuildFailed(
            f"CUDA {release[0]}.{release[1]} can't be completed from the package index: its wheels hold no "
            f"compiler before CUDA {_FIRST_WITH_WHEELS}. Install the rest of the toolkit (rerankd doctor "
            "prints the commands)."
        )
    names: Sequence[str] = (*_COMPILER_WHEELS, _RUNTIME_WHEEL, _CUBLAS_WHEEL)
    if toolkit is not None and lacks(toolkit) == ["cuBLAS"]:
        names = (_CUBLAS_WHEEL,)
    return release, [f"{name}=={release[0]}.{release[1]}.*" for name in names]


def architectures(asked: str | None, gpus: Sequence[Gpu]) -> str:
    """(pure) CMAKE_CUDA_ARCHITECTURES: what the user asked for, else that of each card.

    Raises BuildFailed where there is neither.
    """
    if asked:
        if not re.fullmatch(r"\d{2,3}[a-z]?(-real|-virtual)?([;,]\d{2,3}[a-z]?(-real|-virtual)?)*", asked):
            raise BuildFailed(
                f"--cuda-arch {asked} is not one: write 89 for a card of compute capability 8.9."
            )
        return asked.replace(",", ";")
    found = sorted({gpu.compute_capability.replace(".", "") for gpu in gpus}, key=int)
    if not found:
        raise BuildFailed(
            "No NVIDIA card answers here (nvidia-smi), so it is not known what to build for. Name the card's "
            "compute capability: --cuda-arch 89 for 8.9."
        )
    return ";".join(found)


def complete(toolkit: Toolkit | None, folder: Path, report: Progress) -> Toolkit:
    """The toolkit with what it lacks taken from the package index, into a folder of `folder`.

    Some 500 MB come over the network, once. Raises BuildFailed, FetchError and DataFolderError.
    """
    release, requirements = wheels(toolkit)
    root = folder / f"cuda-{release[0]}.{release[1]}-{len(requirements)}"
    if not root.is_dir():
        with disk_errors(f"The CUDA toolkit could not be written to {folder}", "It takes about 2 GB there."):
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
            raise BuildFailed(f"The CUDA toolkit in {root} is not whole: delete that folder and try again.")
        return whole
    return replace(toolkit, cublas=_library(root, "cublas"), includes=(root / "include",))


def unpack(files: Sequence[Path], root: Path) -> None:
    """Put NVIDIA's wheels together as a toolkit is: bin, include, lib, nvvm. Raises OSError."""
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
    """(pure) Whether this CUDA release compiles for a card of this compute capability."""
    card = int(capability.replace(".", ""))
    first = next(first for oldest, first in _CARDS if card >= oldest)
    return release >= first and not (release[0] >= 13 and card < _OLDEST_CARD_OF_13)


def release_of(text: str) -> tuple[int, int] | None:
    """(pure) The release in what `nvcc --version` says."""
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
        # A program on PATH that only stands for the toolkit's own.
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
