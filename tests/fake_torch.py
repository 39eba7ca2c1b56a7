"""A stand-in for PyTorch, as far as the probe of devices calls it, on a machine with the cards of FAKE_CARDS.

`install` makes it the `torch` of this process and of its children, with an `nvidia-smi` for the same cards. A
card is written "name:GiB:free GiB:compute capability", and several are separated by commas.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VERSION = "2.99.0"
_SMI = r"""#!/bin/sh
case "$1" in
--query-gpu=*)
    printf '%s\n' "$FAKE_CARDS" | tr , '\n' | while IFS=: read -r name total free capability; do
        echo "$name, $((total * 1024)), $((free * 1024)), $capability, 580.1, GPU-$name"
    done ;;
esac
"""


def install(folder: Path, monkeypatch: Any, cards: str) -> None:
    """Install it for the rest of the test, in `folder`."""
    (folder / "torch").mkdir(parents=True)
    (folder / "torch" / "__init__.py").write_text(Path(__file__).read_text())
    about = folder / f"torch-{VERSION}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {VERSION}\n")
    smi = folder / "nvidia-smi"
    smi.write_text(_SMI)
    smi.chmod(0o755)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    )
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_CARDS", cards)


class _Ones:
    """A matrix of ones on a device; a K80 has no kernel for its product."""

    def __init__(self, size: int, _: int, device: str) -> None:
        self._size, self._device = size, device

    def __matmul__(self, other: _Ones) -> dict[tuple[int, int], int]:
        if _cards()[int(self._device.partition(":")[2])][0] == "K80":
            raise RuntimeError("CUDA error: no kernel image is available\nmore lines")
        return {(0, 0): self._size}


def _cards() -> list[list[str]]:
    return [one.split(":") for one in os.environ["FAKE_CARDS"].split(",") if one]


def _capability(at: int) -> tuple[int, int]:
    major, minor = _cards()[at][3].split(".")
    return int(major), int(minor)


if __name__ == "torch":
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID", "the order of nvidia-smi"
    __version__ = VERSION
    ones = _Ones
    cuda = SimpleNamespace(
        device_count=lambda: len(_cards()),
        get_device_capability=_capability,
        get_device_properties=lambda at: SimpleNamespace(
            name=_cards()[at][0], total_memory=int(_cards()[at][1]) * 2**30
        ),
        init=lambda: None,
    )
    backends = SimpleNamespace(
        mps=SimpleNamespace(is_available=lambda: False), cuda=SimpleNamespace(is_built=lambda: True)
    )
    print("a warning of the driver", file=sys.stdout)
