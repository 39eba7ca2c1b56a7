"""What this machine offers an engine: cores, memory and GPUs, as far as this process may use them."""

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
# What of a CPU's flags a compiler makes faster code of.
_INSTRUCTIONS = (
    "avx", "avx2", "fma", "f16c", "bmi2", "sse4_2", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq",
    "avx512cd", "avx512vbmi", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8", "amx_bf16",
    "asimddp", "i8mm", "sve", "sve2",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA card: memory in bytes (0: it has none of its own), compute capability such as "8.9", the
    driver's version, and the card's own id."""

    name: str
    total_bytes: int
    free_bytes: int
    compute_capability: str
    driver: str = ""
    uuid: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """`cores` are the physical ones this process may keep busy, a container's quota respected;
    `memory_bytes` is what it may use in all, None where it can't be told."""

    cores: int
    memory_bytes: int | None
    gpus: tuple[Gpu, ...] = ()


def read() -> Machine:
    """This machine without its GPUs, the limits of a container included."""
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
    """Memory that another process may take now without others being moved out, the limits of a container
    included; None where it can't be told."""
    found = []
    with contextlib.suppress(ValueError, StopIteration):
        lines = _read(Path("/proc/meminfo")).splitlines()
        words = next(line for line in lines if line.startswith("MemAvailable:")).split()
        found.append(int(words[1]) * 1024)
    with contextlib.suppress(ValueError):
        found.append(int(_read(_CGROUP / "memory.max")) - int(_read(_CGROUP / "memory.current")))
    return min(found, default=None)


def lacks_room_beside(pid: int) -> str:
    """Why no second process of the size of `pid` has room now, in words; "" where it has, or it can't be
    told. It may take a second."""
    cards = gpus()
    held = dict(gpu_memory([pid], cards) or {}) if cards else {}
    free = {memory.card(at): gpu.free_bytes for at, gpu in enumerate(cards)}
    own, available = processes.memory_bytes(pid), available_bytes()
    if own is not None and available is not None:
        held[memory.MEMORY], free[memory.MEMORY] = own, available
    return lack(held, free)


def lack(held: memory.Bytes, free: memory.Bytes) -> str:
    """(pure) Which device has too little free for what is held there once more, in words; "" for none."""
    for device, size in held.items():
        if size > free.get(device, size):
            amount = f"{free[device] / 2**20:,.0f} MiB of {device} are free"
            return f"{amount}, too few for a second {size / 2**20:,.0f} MiB"
    return ""


def gpus() -> tuple[Gpu, ...]:
    """The NVIDIA cards that CUDA_VISIBLE_DEVICES leaves, by nvidia-smi; none where there is no such program.
    It may take a second."""
    found = parse_gpus(_smi(f"--query-gpu={_SMI_QUERY}"))
    return visible(found, os.environ.get("CUDA_VISIBLE_DEVICES"))


def visible(gpus: tuple[Gpu, ...], said: str | None) -> tuple[Gpu, ...]:
    """(pure) The cards that CUDA_VISIBLE_DEVICES leaves: their numbers, up to the first that there is not.
    Other names than numbers are not looked into: then all are taken."""
    if said is None or any(not word.strip().lstrip("-").isdigit() for word in said.split(",") if word):
        return gpus
    left = []
    for word in said.split(","):
        if not word.strip().isdigit() or int(word) >= len(gpus):
            break
        left.append(gpus[int(word)])
    return tuple(left)


def gpu_memory(pids: Sequence[int], gpus: Sequence[Gpu]) -> dict[str, int] | None:
    """Bytes that these processes hold on each of these cards (see memory.card), by nvidia-smi; None where it
    does not tell of them, as in a container with process numbers of its own. It may take a second."""
    return parse_gpu_memory(_smi("--query-compute-apps=gpu_uuid,pid,used_memory"), pids, gpus)


def _smi(query: str) -> str:
    """What nvidia-smi answers, as CSV; "" where there is no such program."""
    return processes.output(["nvidia-smi", query, "--format=csv,noheader,nounits"], _SMI_TIMEOUT_S)


def cpu_name() -> str:
    """The CPU as it calls itself."""
    found = (line.partition(":")[2] for line in _cpuinfo() if line.startswith("model name"))
    return next(found, "").strip() or platform.processor() or platform.machine()


def instructions() -> tuple[str, ...]:
    """Those of the CPU's instruction sets that matter for speed, by Linux's names; () elsewhere."""
    flags = cpu_flags()
    return tuple(name for name in _INSTRUCTIONS if name in flags)


def cpu_flags() -> frozenset[str]:
    """All that the CPU can do, by Linux's names; none elsewhere."""
    lines = (line.partition(":")[2] for line in _cpuinfo() if line.startswith(("flags", "Features")))
    return frozenset(next(lines, "").split())


def count_cores(siblings: Iterable[str], logical: int, quota: str) -> int:
    """(pure) Physical cores: of `siblings`, one text for each CPU that names all CPUs of its core, those
    that differ; where there are none, the `logical` CPUs. `quota` is cgroup's cpu.max: microseconds of CPU
    time a period, or "max".
    """
    cores = len(set(siblings)) or logical
    with contextlib.suppress(ValueError):
        allowance, period = map(int, quota.split())
        cores = min(cores, max(1, math.floor(allowance / period)))
    return max(cores, 1)


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """(pure) The lines of nvidia-smi's CSV, memory in MiB; a line that is not one of a card is left out."""
    found = []
    for line in text.splitlines():
        fields = [field.strip() for field in line.split(",")]
        with contextlib.suppress(ValueError):
            name, total, free, capability, driver, *uuid = fields
            float(capability)  # what is no card has none
            found.append(Gpu(name, _mebibytes(total), _mebibytes(free), capability, driver, "".join(uuid)))
    return tuple(found)


def parse_gpu_memory(text: str, pids: Sequence[int], gpus: Sequence[Gpu]) -> dict[str, int] | None:
    """(pure) The lines "card's id, pid, MiB" of nvidia-smi's CSV, summed up by card for these processes; None
    where there is none of them."""
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
