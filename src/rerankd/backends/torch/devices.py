"""(pure) The devices that PyTorch sees on a machine: which ones may run a model, in which precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rerankd.domain import Refusal
from rerankd.machine import Gpu
from rerankd.memory import card, for_engines

Precision = Literal["f32", "bf16", "f16"]
EightBits = Literal["", "fp8", "int8"]
CPU = "cpu"
# Activations of these architectures exceed the range of float16.
_NEVER_F16 = ("gemma", "t5")
# PyTorch and nvidia-smi differ in a card's memory by what the driver reserves.
_RESERVED = 0.1
# The compute capability from which on flash attention, and so the varlen kernel, runs.
_VARLEN = (8, 0)
# That of the first cards that multiply float8 numbers: Ada.
_FLOAT8 = (8, 9)
CUDA_BYTES = "about 3 GB"
"""What PyTorch with CUDA takes to download, in words; docs/gpu.md has the command that measures it."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device by PyTorch's name, such as "cuda:0", "mps", "xpu:0" or "cpu". `title` is its name in words,
    `total_bytes` its memory (0 if it shares main memory). `has_bf16`: it computes in bf16. `capability` is
    that of a CUDA card. `room_bytes` is the part of its memory that engines may use, None if unknown."""

    name: str
    title: str
    total_bytes: int = 0
    has_bf16: bool = False
    capability: tuple[int, int] = (0, 0)
    room_bytes: int | None = None

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def card(self) -> str:
        """The card's name in memory budgets (see memory.card); "" for a device that is no CUDA card."""
        return card(int(self.name.partition(":")[2])) if self.kind == "cuda" else ""


@dataclass(frozen=True, slots=True)
class Survey:
    """PyTorch on this machine: its version, "" if it is not installed, and its devices, the CPU last.
    `problem` says why the probe failed, as a clause, "" if it did not. `unused` says the same of cards that
    PyTorch does not use, one clause each. `has_card`: there is an NVIDIA card, whether or not PyTorch is
    installed. `environment` is the folder of the Python environment that rerankd runs in. `compiler` is the C
    compiler that PyTorch would call, "" if there is none; `has_headers`: Python's headers, which it includes,
    are installed; `cache` is the folder for compiled code."""

    version: str
    devices: tuple[Device, ...] = ()
    problem: str = ""
    has_card: bool = False
    unused: tuple[str, ...] = ()
    environment: str = ""
    compiler: str = ""
    has_headers: bool = True
    cache: Path = Path()

    @property
    def install(self) -> str:
        """The command that installs PyTorch, and where."""
        where = f" in rerankd's own environment, {self.environment}" if self.environment else ""
        return f"pip install 'rerankd[torch]'{where}"

    @property
    def shortfall(self) -> str:
        """Why PyTorch computes on the CPU although there is a GPU, as a clause; "" if there is none."""
        if any(one.kind != CPU for one in self.devices):
            return ""
        if self.unused:
            return "PyTorch does not use the GPU: " + "; ".join(self.unused)
        if self.has_card:
            return (
                f"PyTorch {self.version} does not see the NVIDIA GPU; if this is the build for CPUs, install "
                f"the one with CUDA ({CUDA_BYTES})"
            )
        return ""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A precision, and the reason for it in words. `eight_bits`: how the matrices of the layers are kept in 8
    bits (see quantized.py); "" if they are not."""

    precision: Precision
    why: str
    eight_bits: EightBits = ""

    @property
    def name(self) -> str:
        """The precision and the weights in words."""
        return f"{self.precision}, weights in {self.eight_bits}" if self.eight_bits else self.precision


def parse(said: Any, cpu: Device) -> tuple[Device, ...]:
    """The devices in the probe's output. Raises KeyError, TypeError or ValueError if it is invalid."""
    found = [
        Device(
            str(one["name"]),
            str(one["title"]),
            int(one["total_bytes"]),
            bool(one["has_bf16"]),
            (int(one["capability"][0]), int(one["capability"][1])),
        )
        for one in said["devices"]
    ]
    return (*found, cpu)


def with_room(devices: Sequence[Device], gpus: Sequence[Gpu], held: Mapping[str, int] | None) -> list[Device]:
    """Add the memory that engines may use now. Of a CUDA card that is what is free, and what rerankd's own
    engines hold (`held`, see machine.gpu_memory), because these can be unloaded. If the latter is unknown
    (None), no card counts as occupied."""
    own = held or {}
    room = {
        card(at): for_engines(
            gpu.total_bytes, None if held is None else gpu.free_bytes + own.get(card(at), 0)
        )
        for at, gpu in enumerate(gpus)
    }
    total = {card(at): gpu.total_bytes for at, gpu in enumerate(gpus)}

    def of(one: Device) -> int | None:
        if one.total_bytes and abs(total.get(one.card, 0) / one.total_bytes - 1) < _RESERVED:
            return room[one.card]
        return for_engines(one.total_bytes) or None  # not listed by nvidia-smi, or a part of what it lists

    return [replace(one, room_bytes=of(one)) for one in devices]


def candidates(survey: Survey, wanted: str) -> tuple[Device, ...] | Refusal:
    """The devices that the setting `wanted` names, at least one. With "auto" those of the first one's kind:
    all CUDA cards, or the CPU if there is no GPU."""
    if not survey.version:
        step = f"install it: {survey.install}"
        if not survey.has_card:
            return Refusal("PyTorch is not installed", step, is_minor=True)
        reason = "PyTorch is not installed, which computes several times faster on a GPU"
        return Refusal(reason, f"{step} ({CUDA_BYTES})")
    if survey.problem:
        return Refusal(f"PyTorch does not work here: {survey.problem}", "reinstall rerankd[torch]")
    first = survey.devices[0].kind
    named = [one for one in survey.devices if (first if wanted == "auto" else wanted) in (one.name, one.kind)]
    if named:
        return tuple(named)
    choices = ", ".join(["auto", *(one.name for one in survey.devices[:-1])])
    reason = "; ".join(filter(None, (f"PyTorch sees no device {wanted} here", survey.shortfall)))
    return Refusal(reason, f"set device to {choices} or {survey.devices[-1].name}")


def arithmetic(device: Device, architecture: str, wanted: str) -> Arithmetic:
    """The precision of a model on a device; `wanted` is the setting: auto, f32, bf16 or fp8."""
    if wanted == "fp8":
        if device.kind == "cuda" and device.capability >= _FLOAT8:
            return Arithmetic("bf16", "set by the user", "fp8")
        usual = arithmetic(device, architecture, "auto")
        return replace(usual, why=f"{device.title} has no float8 arithmetic")
    if wanted == "f32":
        return Arithmetic("f32", "set by the user")
    if wanted == "bf16" and device.has_bf16:
        return Arithmetic("bf16", "set by the user")
    if device.kind == CPU:
        why = "this CPU has no bf16 arithmetic" if wanted == "bf16" else "on a CPU"
        return Arithmetic("f32", why)
    if device.has_bf16:
        return Arithmetic("bf16", f"on {device.title}")
    if architecture.startswith(_NEVER_F16):
        return Arithmetic("f32", f"{device.title} has no bf16, and {architecture} exceeds float16")
    return Arithmetic("f16", f"{device.title} has no bf16")


def may_use_varlen(device: Device, precision: Precision) -> bool:
    """Whether packed attention has a kernel: half precision on a CUDA card from compute capability 8.0 on.
    The worker checks it once more when it loads."""
    return device.kind == "cuda" and device.capability >= _VARLEN and precision != "f32"


def bytes_a_number(precision: Precision) -> int:
    """The size of one weight."""
    return 4 if precision == "f32" else 2


def spread(device: Device, cards: Sequence[str]) -> str:
    """The device of one replica: the first of the `cards` that it may use (see memory.card), if any."""
    if device.kind != "cuda" or not cards:
        return device.name
    return f"cuda:{cards[0].removeprefix('gpu')}"
