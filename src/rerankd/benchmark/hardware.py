"""What a benchmark ran on: the processor, the versions, and the peak that a matrix product reaches."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np

from rerankd import machine
from rerankd.backends.table import BACKENDS

# What decides how fast products of matrices are, in the names that Linux gives them.
_FLAGS = (
    *("avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "amx_fp16", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
_SIZE = 1536
_MEASURE_S = 1.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """`load` is what the machine had to do already: the mean number of processes that wanted to run in the
    minute before. `peak_flops` is of f32."""

    processor: str
    flags: tuple[str, ...]
    cores: int
    memory_bytes: int | None
    system: str
    load: float | None
    versions: dict[str, str]
    peak_flops: float


def read() -> Hardware:
    """This machine. Takes a second, for the peak."""
    here = machine.read()
    flags = machine.cpu_flags()
    load = None
    with contextlib.suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
    return Hardware(
        processor=machine.cpu_name(),
        flags=tuple(flag for flag in _FLAGS if flag in flags),
        cores=here.cores,
        memory_bytes=here.memory_bytes,
        system=f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        load=load,
        versions=versions(),
        peak_flops=gemm_peak(),
    )


def gemm_peak() -> float:
    """FLOPs a second of the fastest of several f32 products of square matrices with numpy, on all cores.

    A matrix product is most of what a model computes, so no engine gets past that with f32. With bf16 or int8
    instructions it can: numpy has no product of these, and the peak they reach is not measured here.
    """
    generator = np.random.default_rng(1)
    left, right = (generator.standard_normal((_SIZE, _SIZE)).astype(np.float32) for _ in range(2))
    best, ends = float("inf"), time.perf_counter() + _MEASURE_S
    while (started := time.perf_counter()) < ends or best == float("inf"):
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * _SIZE**3 / best


def versions() -> dict[str, str]:
    """The versions of what computes here, by package."""
    found = {}
    of_backends = (package for backend in BACKENDS for package in backend.packages)
    for package in ("rerankd", *of_backends, "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
