"""(pure) The devices that PyTorch sees on a machine: which one runs a model, in which precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rerankd.domain import Refusal

Precision = Literal["f32", "bf16", "f16"]
CPU = "cpu"
# Activations of these architectures exceed the range of float16.
_NEVER_F16 = ("gemma", "t5")
# The compute capability from which on flash attention, and so the varlen kernel, runs.
_VARLEN = (8, 0)


@dataclass(frozen=True, slots=True)
class Device:
    """A device by PyTorch's name, such as "cuda:0", "mps", "xpu:0" or "cpu". `title` is its name in words,
    `total_bytes` its memory (0 if it shares main memory). `has_bf16`: it computes in bf16. `capability` is
    that of a CUDA card."""

    name: str
    title: str
    total_bytes: int = 0
    has_bf16: bool = False
    capability: tuple[int, int] = (0, 0)

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Survey:
    """PyTorch on this machine: its version, "" if it is not installed, and its devices, the CPU last.
    `problem` says why the probe failed, as a clause, "" if it did not. `has_card`: there is an NVIDIA card,
    whether or not PyTorch is installed."""

    version: str
    devices: tuple[Device, ...] = ()
    problem: str = ""
    has_card: bool = False


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """A precision, and the reason for it in words."""

    precision: Precision
    why: str


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


def choose(survey: Survey, wanted: str) -> Device | Refusal:
    """The device that the setting `wanted` names; with "auto" the first one."""
    if not survey.version:
        reason = (
            "PyTorch is not installed" + ", which computes several times faster on a GPU" * survey.has_card
        )
        step = "install it: pip install 'rerankd[torch]'"
        return Refusal(reason, step, is_minor=not survey.has_card)
    if survey.problem:
        return Refusal(f"PyTorch does not work here: {survey.problem}", "reinstall rerankd[torch]")
    named = [one for one in survey.devices if wanted in ("auto", one.name, one.kind)]
    if named:
        return named[0]
    there = ", ".join(one.name for one in survey.devices)
    return Refusal(f"PyTorch sees no device {wanted} here", f"set device to auto or to one of {there}")


def arithmetic(device: Device, architecture: str, wanted: str) -> Arithmetic:
    """The precision of a model on a device; `wanted` is the setting: auto, f32 or bf16."""
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
