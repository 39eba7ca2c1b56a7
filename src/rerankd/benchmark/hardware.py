"""The hardware of a benchmark: processor, package versions, and the measured peak FLOPS of a matrix
product."""

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

# CPU features that determine the speed of matrix products, by their names in Linux.
_FLAGS = (
    *("avx2", "f16c", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_int8", "amx_bf16", "amx_fp16", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
_SIZE = 1536
_MEASURE_S = 1.0


@dataclass(frozen=True, slots=True)
class Hardware:
    """The machine. `load` is the load average of the minute before the benchmark. `peak_flops` is for f32."""

    processor: str
    flags: tuple[str, ...]
    cores: int
    memory_bytes: int | None
    system: str
    load: float | None
    versions: dict[str, str]
    peak_flops: float


def read() -> Hardware:
    """Describe this machine. Takes one second to measure the peak."""
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
    """Measure the FLOPS of numpy's f32 product of square matrices on all cores; return the best of several.

    Matrix products are most of a model's computation, so no engine exceeds this peak with f32. With bf16 or
    int8 instructions an engine can: numpy has no such product, so their peak is not measured.
    """
    generator = np.random.default_rng(1)
    left, right = (generator.standard_normal((_SIZE, _SIZE)).astype(np.float32) for _ in range(2))
    best, ends = float("inf"), time.perf_counter() + _MEASURE_S
    while (started := time.perf_counter()) < ends or best == float("inf"):
        left @ right
        best = min(best, time.perf_counter() - started)
    return 2 * _SIZE**3 / best


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute, by name."""
    found = {}
    of_backends = (package for backend in BACKENDS for package in backend.packages)
    for package in ("rerankd", *of_backends, "numpy"):
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
