"""(pure) doctor's checks for PyTorch: whether it is installed, its devices, and a compiler."""

from __future__ import annotations

from collections.abc import Iterator

from rerankd.backends.base import Check, Status
from rerankd.backends.torch import devices
from rerankd.backends.torch.devices import Device, Survey
from rerankd.domain import Refusal

_CHECK = "torch"
_GIB = 2**30


def diagnose(survey: Survey, wanted: str) -> list[Check]:
    """Return all lines. `wanted` is the setting `device`."""
    if survey.version and not survey.problem:
        compiles = any(one.kind == "cuda" for one in survey.devices)
        return [*_devices(survey, wanted), *([_compiler(survey)] if compiles else [])]
    found = devices.candidates(survey, wanted)
    assert isinstance(found, Refusal)
    if found.is_minor:
        says = "not installed: models run on other engines"
        return [Check(_CHECK, "ok", says, f"for more models: {survey.install}")]
    return [Check(_CHECK, "warn", found.reason, found.next_step)]


def _devices(survey: Survey, wanted: str) -> Iterator[Check]:
    found = devices.candidates(survey, wanted)
    if isinstance(found, Refusal):
        yield Check(_CHECK, "warn", found.reason, found.next_step)
    else:
        on = "; ".join(map(_words, found))
        says = f"{survey.version} in {survey.environment}, on {on}"
        status: Status = "warn" if survey.shortfall else "ok"
        yield Check(_CHECK, status, "; ".join(filter(None, (says, survey.shortfall))))
    if not survey.shortfall:  # which names them
        for problem in survey.unused:
            yield Check(_CHECK, "warn", f"does not use {problem}")


def _words(device: Device) -> str:
    arithmetic = devices.arithmetic(device, "", "auto")
    attention = "packed" if devices.may_use_varlen(device, arithmetic.precision) else "padded"
    room = f", {device.room_bytes / _GIB:.1f} GiB for engines" if device.room_bytes is not None else ""
    return f"{device.name} ({device.title}{room}): {arithmetic.precision}, {attention} attention"


def _compiler(survey: Survey) -> Check:
    lacks = "there is no C compiler" if not survey.compiler else "Python's headers are missing"
    if survey.compiler and survey.has_headers:
        return Check("torch compiler", "ok", f"{survey.compiler}; compiled code is kept in {survey.cache}")
    return Check(
        "torch compiler",
        "warn",
        f"{lacks}, so PyTorch computes without compiled layers, which is slower on a GPU",
        "install them (Debian, Ubuntu: apt install gcc g++ python3-dev)",
    )
