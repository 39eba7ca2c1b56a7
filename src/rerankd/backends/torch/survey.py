"""What PyTorch can use on this machine, from a probe that runs once and is kept in the state.

Importing PyTorch takes seconds and hundreds of megabytes, so only a process of its own does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rerankd import machine, processes
from rerankd.backends.torch import devices
from rerankd.backends.torch.devices import Device, Survey

SECTION = "torch_devices"
DEV = Path("/dev")
_TIMEOUT_S = 120.0
# A failure may pass: a driver that is being installed, a card that another process holds.
_FAILED_TTL_S = 600.0
# In the Windows Subsystem for Linux, cards of all makers are this device.
_WSL = "dxg"
_HIDES = ("CUDA_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")


def look(home: Path) -> Survey:
    """Survey this machine. The first time after an installation it takes some seconds, later up to a second
    if there are CUDA cards."""
    installed = version()
    known = Survey(
        installed,
        has_card=_has_card(),
        environment=sys.prefix,
        compiler=_compiler(),
        has_headers=Path(sysconfig.get_path("include"), "Python.h").exists(),
        cache=home / "cache" / "torch",
    )
    if not installed:
        return known
    from rerankd.state import StateStore  # see the table: it imports what takes long

    state, key = StateStore(home), _key(installed)
    kept = state.get(SECTION, key)
    if kept is None:
        kept = _probed()
        has_failed = kept.get("problem") or kept.get("unused") or (known.has_card and kept.get("driver"))
        state.put(SECTION, key, kept, _FAILED_TTL_S if has_failed else None)
    found = read(known, kept, _cpu())
    if not any(one.card for one in found.devices):
        return found
    gpus, engines = machine.gpus(), [pid for pid in processes.children() if processes.uses_gpu(pid)]
    held = machine.gpu_memory(engines, gpus) if engines else {}
    return replace(found, devices=tuple(devices.with_room(found.devices, gpus, held)))


def _has_card() -> bool:
    """Whether there is an NVIDIA card that the user does not hide."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return bool(_cards()) or ((DEV / _WSL).exists() and shutil.which("nvidia-smi") is not None)


def version() -> str:
    """PyTorch's version, "" if it is not installed."""
    if find_spec("torch") is None:
        return ""
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version("torch")
    return ""


def read(known: Survey, kept: Any, cpu: Device) -> Survey:
    """(pure) Add a stored probe to what is known without it. One that is not valid counts as a failure,
    because users may edit it."""
    try:
        if "problem" in kept:
            return replace(known, problem=str(kept["problem"]))
        unused = [str(one) for one in kept.get("unused", ())]
        # On a machine without a card, there is no driver to miss.
        unused += [str(kept["driver"])] if known.has_card and kept.get("driver") else []
        return replace(known, devices=devices.parse(kept, cpu), unused=tuple(unused))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError):
        return replace(known, problem="the stored list of its devices is damaged (rerankd state clear)")


def _compiler() -> str:
    """The C compiler that PyTorch's compiler calls: Triton takes CC, or the first of these."""
    return next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "gcc", "clang"))), "")


def _cpu() -> Device:
    has_bf16 = bool({"amx_bf16", "avx512_bf16"} & set(machine.instructions()))
    return Device(devices.CPU, machine.cpu_name(), has_bf16=has_bf16)


def _cards() -> list[str]:
    """The device files of NVIDIA's driver."""
    return sorted(path.name for path in DEV.glob("nvidia[0-9]*"))


def _key(installed: str) -> str:
    """What the list of devices depends on: PyTorch, the device files, and the variables that hide cards."""
    files = _cards()
    files += sorted(path.name for path in (DEV / "dri").glob("render*"))
    hidden = [f"{name}={os.environ[name]}" for name in _HIDES if name in os.environ]
    return " ".join((installed, sys.prefix, *files, *hidden))


def _probed() -> dict[str, Any]:
    argv = [sys.executable, "-P", "-m", "rerankd.backends.torch.probe"]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
            env={**machine.CUDA_ORDER, **os.environ},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"problem": f"listing its devices failed ({error})"}
    with contextlib.suppress(ValueError, IndexError):
        said: Any = json.loads(done.stdout.splitlines()[-1])
        if isinstance(said, dict) and done.returncode == 0:
            return said
    last = (done.stderr.strip().splitlines() or [f"it exited with code {done.returncode}"])[-1]
    return {"problem": f"listing its devices failed ({last:.300})"}
