"""(pure) Plan a build: from source, backend, tools and CPU to cmake's options and the engine's name."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rerankd.backends.llama.build.cuda import Toolkit
from rerankd.backends.llama.build.source import Source
from rerankd.backends.llama.build.tools import Tools
from rerankd.backends.llama.manifest import Backend
from rerankd.errors import BuildFailed
from rerankd.machine import Gpu

TARGET = "llama-server"
# Only the server, statically linked, without web page, HTTPS, and parts that download during the build.
_ALWAYS = {
    "CMAKE_BUILD_TYPE": "Release",
    "BUILD_SHARED_LIBS": "OFF",
    "LLAMA_BUILD_TESTS": "OFF",
    "LLAMA_BUILD_EXAMPLES": "OFF",
    "LLAMA_BUILD_APP": "OFF",
    "LLAMA_BUILD_UI": "OFF",
    "LLAMA_USE_PREBUILT_UI": "OFF",
    "LLAMA_OPENSSL": "OFF",
    "LLAMA_CURL": "OFF",
}
_BACKEND: dict[Backend, dict[str, str]] = {
    "cpu": {"GGML_METAL": "OFF", "GGML_BLAS": "OFF"},
    "cuda": {"GGML_CUDA": "ON", "GGML_CUDA_NCCL": "OFF"},
    "vulkan": {"GGML_VULKAN": "ON"},
    "metal": {"GGML_METAL": "ON", "GGML_METAL_EMBED_LIBRARY": "ON"},
    "hip": {"GGML_HIP": "ON"},
}
# llama.cpp's option -> the instruction sets that it enables, by their Linux names.
_X86 = {
    "GGML_SSE42": ("sse4_2",),
    "GGML_AVX": ("avx",),
    "GGML_AVX2": ("avx2",),
    "GGML_FMA": ("fma",),
    "GGML_F16C": ("f16c",),
    "GGML_BMI2": ("bmi2",),
    "GGML_AVX_VNNI": ("avx_vnni",),
    "GGML_AVX512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"),
    "GGML_AVX512_VBMI": ("avx512vbmi",),
    "GGML_AVX512_VNNI": ("avx512_vnni",),
    "GGML_AVX512_BF16": ("avx512_bf16",),
}
# x86-64-v3 (Intel since 2013, AMD since 2015); on arm64 only the base instruction set.
_PORTABLE = ("avx", "avx2", "fma", "f16c", "bmi2", "sse4_2")
_GIB = 2**30
# Disk space for the build folder and the program, and memory of a compiler process.
DISK_BYTES: dict[Backend, int] = {
    "cpu": _GIB, "cuda": 4 * _GIB, "vulkan": 2 * _GIB, "metal": _GIB, "hip": 4 * _GIB,
}  # fmt: skip
_JOB_BYTES: dict[Backend, int] = {
    "cpu": _GIB, "cuda": 2 * _GIB, "vulkan": _GIB, "metal": _GIB, "hip": 2 * _GIB,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Plan:
    """One build: cmake's options, and the CPU instruction sets that the program may use. `toolkit` is set for
    CUDA builds."""

    backend: Backend
    source: Source
    tools: Tools
    options: tuple[tuple[str, str], ...]
    instructions: tuple[str, ...]
    toolkit: Toolkit | None

    @property
    def name(self) -> str:
        """The engine's name, which is unique for each different build."""
        # Leave out ccache, which does not change the result, and paths, which differ between machines.
        options = {key: value for key, value in self.options if "/" not in value and key != "GGML_CCACHE"}
        release = self.toolkit.name if self.toolkit is not None else ""
        parts = [self.source.digest, options, self.tools.compiler, release, self.instructions]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:8]
        return f"b{self.source.build}-{self.backend}-{digest}"

    @property
    def flags(self) -> tuple[str, ...]:
        return tuple(f"-D{name}={value}" for name, value in self.options)

    def configure(self, folder: Path) -> list[str]:
        """Return the cmake command that configures `folder`."""
        return [
            self.tools.cmake, "-G", self.tools.generator, "-S", str(self.source.tree), "-B", str(folder),
            *self.flags,
        ]  # fmt: skip

    def compile(self, folder: Path, jobs: int) -> list[str]:
        """Return the command that builds the server in `folder`. Not `cmake --build`, because its child
        processes outlive it."""
        return [self.tools.ninja or self.tools.make, "-C", str(folder), f"-j{jobs}", TARGET]


def backend_here(gpus: Sequence[Gpu], toolkit: Toolkit | None, platform: str, machine: str) -> Backend:
    """Resolve `--backend auto`: cuda with a GPU and nvcc, metal on Apple silicon, else cpu."""
    if gpus and toolkit is not None:
        return "cuda"
    return "metal" if (platform, machine) == ("darwin", "arm64") else "cpu"


def portable(instructions: Sequence[str]) -> tuple[str, ...]:
    """Return the subset of instruction sets that nearly every CPU of its architecture has."""
    return tuple(name for name in instructions if name in _PORTABLE)


def make(
    source: Source,
    backend: Backend,
    tools: Tools,
    instructions: Sequence[str],
    *,
    toolkit: Toolkit | None = None,
    architectures: str = "",
    has_driver: bool = False,
    native: bool = True,
) -> Plan:
    """Plan a build. With `native`, the compiler detects the CPU's instruction sets (-march=native); without
    it they are listed explicitly, without AMX. `has_driver` False: the CUDA build must start on a machine
    without a driver.
    """
    options = {**_ALWAYS, **_BACKEND[backend]}
    options["LLAMA_BUILD_NUMBER"] = str(source.build)
    options["LLAMA_BUILD_COMMIT"] = source.digest[:7]
    options["CMAKE_C_COMPILER"], options["CMAKE_CXX_COMPILER"] = tools.cc, tools.cxx
    options["GGML_CCACHE"] = "ON" if tools.ccache else "OFF"
    options["GGML_NATIVE"] = "ON"
    if backend == "cuda":
        if toolkit is None:
            raise BuildFailed(
                "A CUDA build needs nvcc, which is missing. rerankd doctor shows how to install it."
            )
        options |= _cuda(toolkit, architectures, has_driver)
    toolkit = toolkit if backend == "cuda" else None
    made = Plan(backend, source, tools, tuple(options.items()), tuple(instructions), toolkit)
    return made if native else careful(made)


def careful(made: Plan) -> Plan:
    """Return the same build with the CPU's instruction sets listed explicitly, without AMX."""
    options = dict(made.options) | {"GGML_NATIVE": "OFF"} | named_instructions(made.instructions)
    left = tuple(name for name in made.instructions if not name.startswith("amx"))
    return replace(made, options=tuple(options.items()), instructions=left)


def named_instructions(instructions: Sequence[str]) -> dict[str, str]:
    """Return llama.cpp's options for these instruction sets, with AMX off. The x86 options have no effect on
    other CPUs."""
    have = set(instructions)
    named = {option: "ON" if have >= set(needed) else "OFF" for option, needed in _X86.items()}
    named |= {f"GGML_AMX_{kind}": "OFF" for kind in ("TILE", "INT8", "BF16")}
    if "asimddp" in have:
        named["GGML_CPU_ARM_ARCH"] = "armv8.2-a+dotprod" + ("+i8mm" if "i8mm" in have else "")
    return named


def jobs(backend: Backend, cores: int, memory_bytes: int | None, asked: int | None = None) -> int:
    """Return the number of parallel jobs: `asked`, else one per core as far as memory suffices."""
    most = cores if memory_bytes is None else min(cores, memory_bytes // _JOB_BYTES[backend])
    return asked or max(1, most)


def _cuda(toolkit: Toolkit, architectures: str, has_driver: bool) -> dict[str, str]:
    options = {
        "CMAKE_CUDA_COMPILER": str(toolkit.nvcc),
        "CUDAToolkit_ROOT": str(toolkit.root),
        "CMAKE_CUDA_ARCHITECTURES": architectures,
        # Virtual memory management calls the driver: it needs the stub to link and the driver at every start.
        "GGML_CUDA_NO_VMM": "OFF" if toolkit.stub is not None and has_driver else "ON",
    }
    if toolkit.cublas is not None and not toolkit.cublas.is_relative_to(toolkit.root):
        folder = toolkit.cublas.parent
        options["CUDA_cublas_LIBRARY"] = str(toolkit.cublas)
        options["CUDA_cublasLt_LIBRARY"] = str(folder / "libcublasLt.so")
        includes = " ".join(f"-I{include}" for include in toolkit.includes)
        options["CMAKE_CUDA_FLAGS"] = options["CMAKE_CXX_FLAGS"] = includes
        options["CMAKE_BUILD_RPATH"] = str(folder)
    return options
