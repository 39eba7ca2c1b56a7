"""A program that prints the devices that PyTorch can use, as a line of JSON: `python -m …torch.probe`.

Each device computes a small product first: a card that PyTorch lists may be too old for its kernels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import torch


def devices() -> Iterator[dict[str, Any]]:
    """Yield each device besides the CPU, as devices.parse reads it."""
    for at in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(at)
        capability = torch.cuda.get_device_capability(at)
        yield _described(
            f"cuda:{at}", properties.name, properties.total_memory, capability >= (8, 0), capability
        )
    if hasattr(torch, "xpu"):
        for at in range(torch.xpu.device_count()):
            properties = torch.xpu.get_device_properties(at)
            yield _described(f"xpu:{at}", properties.name, properties.total_memory, True)
    if torch.backends.mps.is_available():
        yield _described("mps", "Apple GPU", 0, torch.backends.mps.is_macos_or_newer(14, 0))


def _described(
    name: str, title: str, total_bytes: int, has_bf16: bool, capability: tuple[int, int] = (0, 0)
) -> dict[str, Any]:
    return {
        "name": name,
        "title": title,
        "total_bytes": total_bytes,
        "has_bf16": has_bf16,
        "capability": capability,
    }


def driver_problem() -> str:
    """Why a PyTorch with CUDA sees no card, such as a driver that is too old; "" for other builds."""
    if not torch.backends.cuda.is_built() or torch.cuda.device_count():
        return ""
    try:
        torch.cuda.init()
    except RuntimeError as error:  # as below
        return str(error).partition("\n")[0]
    return ""


def computes(name: str) -> str:
    """Why a device does not compute, "" if it does."""
    try:
        ones = torch.ones(16, 16, device=name)
        return "" if float((ones @ ones)[0, 0]) == 16 else "it computes wrong products"
    except RuntimeError as error:  # torch has no narrower one for a missing kernel or a broken driver
        return str(error).partition("\n")[0]


def main() -> int:
    """Print the devices that compute, and why the others are not used."""
    found = []
    unused: list[str] = []
    for one in devices():
        if problem := computes(one["name"]):
            unused.append(f"{one['name']} ({one['title']}): {problem}")
        else:
            found.append(one)
    print(json.dumps({"devices": found, "unused": unused, "driver": driver_problem()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
