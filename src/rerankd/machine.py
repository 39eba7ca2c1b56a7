"""The resources of this machine: CPU cores and instructions, memory and GPUs, within container limits."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rerankd import memory, processes

_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")
_SMI_TIMEOUT_S = 10.0
_SMI_QUERY = "name,memory.total,memory.free,compute_cap,driver_version,uuid"
CUDA_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""The environment in which CUDA numbers GPUs as nvidia-smi does, and so as `gpus`; its own order begins with
the fastest."""
# The CPU flags that let a compiler generate faster code.
_INSTRUCTIONS = (
    "avx", "avx2", "fma", "f16c", "bmi2", "sse4_2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq",
    "avx512cd", "avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU: memory in bytes (0: it shares main memory), compute capability such as "8.9", the
    driver version, and the GPU's UUID."""

    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: str
    driver: str = ""
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """The machine as this process may use it. `cores` counts physical cores, limited by a container's CPU
    quota. `memory_bytes` is the total memory, None if unknown."""

    cores: int
    memory_bytes: int | None
    gpus: tuple[Gpu, ...] = ()


def read() -> Machine:
    """Read this machine's cores and memory, without GPUs, within the limits of a container."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = count_cores(_siblings(allowed), len(allowed), _read(_CGROUP / "cpu.max"))
    found = None
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(ValueError):
        limit = int(_read(_CGROUP / "memory.max"))
        found = limit if found is None else min(found, limit)
    return Machine(cores, found)


def available_bytes() -> int | None:
    """Return the memory that a process can allocate now without swapping, within the limits of a container,
    or None if unknown."""
    found = []
    with contextlib.suppress(ValueError, StopIteration):
        lines = _read(Path("/proc/meminfo")).splitlines()
        words = next(line for line in lines if line.startswith("MemAvailable:")).split()
        found.append(int(words[1]) * 1024)
    with contextlib.suppress(ValueError):
        found.append(int(_read(_CGROUP / "memory.max")) - int(_read(_CGROUP / "memory.current")))
    return min(found, default=None)


def lacks_memory_beside(pid: int) -> str:
    """Return why memory does not suffice for a second process of the size of `pid`, or "" if it does or is
    unknown. May take a second."""
    found = gpus()
    held = dict(gpu_memory([pid], found) or {}) if found else {}
    free = {memory.card(at): gpu.free_bytes for at, gpu in enumerate(found)}
    own, available = processes.memory_bytes(pid), available_bytes()
    if own is not None and available is not None:
        held[memory.MEMORY], free[memory.MEMORY] = own, available
    return lack(held, free)


def lack(held: memory.Bytes, free: memory.Bytes) -> str:
    """(pure) Return which device lacks the free memory to hold the same amount again, in words, or ""."""
    for device, size in held.items():
        if size > free.get(device, size):
            amount = f"{device} has {free[device] / 2**20:,.0f} MiB free"
            return f"{amount}, too little for another {size / 2**20:,.0f} MiB"
    return ""


def gpus() -> tuple[Gpu, ...]:
    """List the NVIDIA GPUs that CUDA_VISIBLE_DEVICES allows, with nvidia-smi; none if it is not installed.
    May take a second."""
    found = parse_gpus(_smi(f"--query-gpu={_SMI_QUERY}"))
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(gpus: tuple[Gpu, ...], allowed: str | None) -> tuple[Gpu, ...]:
    """(pure) Return the GPUs that CUDA_VISIBLE_DEVICES allows: indexes, or beginnings of UUIDs. They count up
    to the first invalid one, as in CUDA. If the value has other names, such as those of parts of a GPU, all
    GPUs are returned."""
    words = [word.strip() for word in (allowed or "").split(",")]
    has_ids = any(word.startswith("GPU-") for word in words) and all(gpu.uuid for gpu in gpus)
    if allowed is None or any(word and not word.lstrip("-").isdigit() for word in words if not has_ids):
        return gpus
    left = []
    for word in words:
        found = [
            at for at, gpu in enumerate(gpus) if word == str(at) or (has_ids and gpu.uuid.startswith(word))
        ]
        if not word or not found:
            break
        left.append(gpus[found[0]])
    return tuple(left)


def gpu_memory(pids: Sequence[int], gpus: Sequence[Gpu]) -> dict[str, int] | None:
    """Return the bytes that these processes use on each GPU (see memory.card), with nvidia-smi. None if it
    does not list them, as in a container with its own pid namespace. May take a second."""
    return parse_gpu_memory(_smi("--query-compute-apps=gpu_uuid,pid,used_memory"), pids, gpus)


def _smi(query: str) -> str:
    """Return the CSV output of nvidia-smi, or "" if it is not installed."""
    return processes.output(["nvidia-smi", query, "--format=csv,noheader,nounits"], _SMI_TIMEOUT_S)


def cpu_name() -> str:
    """Return the CPU's model name."""
    found = (line.partition(":")[2] for line in _cpuinfo() if line.startswith("model name"))
    return next(found, "").strip() or platform.processor() or platform.machine()


def instructions() -> tuple[str, ...]:
    """Return the CPU's instruction sets that affect speed, by their Linux names; () on other systems."""
    flags = cpu_flags()
    return tuple(name for name in _INSTRUCTIONS if name in flags)


def cpu_flags() -> frozenset[str]:
    """Return all flags of the CPU, by their Linux names; empty on other systems."""
    lines = (line.partition(":")[2] for line in _cpuinfo() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").split())


def count_cores(siblings: Iterable[str], logical: int, quota: str) -> int:
    """(pure) Count physical cores, limited by `quota`.

    `siblings` has an entry for each logical CPU that names all CPUs of its core, so distinct entries are
    cores. If it is empty, the number of `logical` CPUs is used. `quota` is the cgroup's cpu.max: microseconds
    of CPU time per period, or "max".
    """
    cores = len(set(siblings)) or logical
    with contextlib.suppress(ValueError):
        allowance, period = map(int, quota.split())
        cores = min(cores, max(1, math.floor(allowance / period)))
    return max(cores, 1)


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """(pure) Parse nvidia-smi's CSV, with memory in MiB. Lines that do not describe a GPU are skipped."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        with contextlib.suppress(ValueError):
            name, total, free, capability, driver, *uuid = fields
            float(capability)  # raises ValueError if the line is not a GPU
            found.append(Gpu(name, _mebibytes(total), _mebibytes(free), capability, driver, "".join(uuid)))
    return tuple(found)


def parse_gpu_memory(text: str, pids: Sequence[int], gpus: Sequence[Gpu]) -> dict[str, int] | None:
    """(pure) Sum the lines "UUID, pid, MiB" of nvidia-smi's CSV by GPU for these processes. None if no line
    belongs to them."""
    devices = {gpu.uuid: memory.card(at) for at, gpu in enumerate(gpus)}
    held: dict[str, int] = {}
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 3 and fields[1] in map(str, pids) and fields[0] in devices:
            device = devices[fields[0]]
            held[device] = held.get(device, 0) + _mebibytes(fields[2])
    return held if any(held.values()) else None


def _mebibytes(text: str) -> int:
    return int(text) * 2**20 if text.isdigit() else 0


def _siblings(cpus: Iterable[int]) -> list[str]:
    texts = [_read(_CPUS / f"cpu{cpu}/topology/thread_siblings_list") for cpu in cpus]
    return [text for text in texts if text]


def _cpuinfo() -> list[str]:
    return _read(Path("/proc/cpuinfo")).splitlines()


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text().strip()
    return ""
