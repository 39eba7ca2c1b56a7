"""The checkpoints of transformers' Trainer, of which one that was killed while it wrote is not complete."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

_PREFIX = "checkpoint-"
STATE = "trainer_state.json"
"""The file that the Trainer writes last."""
_FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", STATE)


def latest(folder: Path) -> Path | None:
    """Return the last complete checkpoint, and delete those that are not complete."""
    found: dict[int, Path] = {}
    for path in folder.glob(f"{_PREFIX}*"):
        if _is_complete(path):
            found[int(path.name.removeprefix(_PREFIX))] = path
        else:
            shutil.rmtree(path)
    return found[max(found)] if found else None


def of_step(folder: Path, step: int) -> Path:
    """Return the path of a step's checkpoint."""
    return folder / f"{_PREFIX}{step}"


def _is_complete(path: Path) -> bool:
    try:
        json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all((path / name).exists() for name in _FILES)
