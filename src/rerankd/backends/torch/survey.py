"""What PyTorch can use on this machine, from a probe that runs once and is kept in the state.

Importing PyTorch takes seconds and hundreds of megabytes, so only a process of its own does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rerankd import machine
from rerankd.backends.torch import devices
from rerankd.backends.torch.devices import Device, Survey

SECTION = "torch_devices"
_TIMEOUT_S = 120.0
# A failure may pass: a driver that is being installed, a card that another process holds.
_FAILED_TTL_S = 600.0
_HIDES = ("CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def look(home: Path) -> Survey:
    """Survey this machine. The first time after an installation it takes some seconds."""
    installed = version()
    if not installed:
        return Survey("", has_card=bool(_cards()))
    from rerankd.state import StateStore  # see the table: it imports what takes long

    state, key = StateStore(home), _key(installed)
    kept = state.get(SECTION, key)
    if kept is None:
        kept = _probed()
        state.put(SECTION, key, kept, _FAILED_TTL_S if "problem" in kept else None)
    return read(installed, kept, _cpu())


def version() -> str:
    """PyTorch's version, "" if it is not installed."""
    if find_spec("torch") is None:
        return ""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("torch")
    return ""


def read(installed: str, kept: Any, cpu: Device) -> Survey:
    """(pure) Parse a stored probe. One that is not valid counts as a failure, because users may edit it."""
    try:
        if "problem" in kept:
            return Survey(installed, (), str(kept["problem"]))
        return Survey(installed, devices.parse(kept, cpu))
    except (KeyError, TypeError, ValueError, IndexError):
        return Survey(installed, (), "the stored list of its devices is damaged (rerankd state clear)")


def _cpu() -> Device:
    has_bf16 = bool({"amx_bf16", "avx512_bf16"} & set(machine.instructions()))
    return Device(devices.CPU, machine.cpu_name(), has_bf16=has_bf16)


def _cards() -> list[str]:
    """The device files of NVIDIA's driver."""
    return sorted(path.name for path in Path("/dev").glob("nvidia[0-9]*"))


def _key(installed: str) -> str:
    """What the list of devices depends on: PyTorch, the device files, and the variables that hide cards."""
    files = _cards()
    files += sorted(path.name for path in Path("/dev/dri").glob("render*"))
    hidden = [f"{name}={os.environ[name]}" for name in _HIDES if name in os.environ]
    return " ".join((installed, sys.prefix, *files, *hidden))


def _probed() -> dict[str, Any]:
    argv = [sys.executable, "-P", "-m", "rerankd.backends.torch.probe"]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": f"listing its devices failed ({error})"}
    with contextlib.suppress(ValueError, IndexError):
        said: Any = json.loads(done.stdout.splitlines()[-1])
        if isinstance(said, dict) and done.returncode == 0:
            return said
    last = (done.stderr.strip().splitlines() or [f"it exited with code {done.returncode}"])[-1]
    return {"problem": f"listing its devices failed ({last:.300})"}
