"""Changes of one part of a checkpoint, its configuration or a tensor, that a golden test must notice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import checkpoints

Change = Callable[[Path], None]
_TYPES = {"F32": np.float32, "F16": np.float16}


def config(**changes: Any) -> Change:
    """Changes keys of config.json; None removes one."""
    return lambda folder: checkpoints.edit(folder / "config.json", **changes)


def tensor(part: str, change: Callable[[Any], Any]) -> Change:
    """Changes the tensors whose name ends with `part`."""

    def apply(folder: Path) -> None:
        held = checkpoints.read(folder / "model.safetensors")
        changed = 0
        for name, (kind, shape, data) in held.items():
            if name.endswith(part):
                values = change(np.frombuffer(data, _TYPES[kind]).reshape(shape).copy())
                held[name] = kind, list(values.shape), values.astype(_TYPES[kind]).tobytes()
                changed += 1
        assert changed, f"there is no tensor {part}"
        checkpoints.write(folder / "model.safetensors", held)

    return apply


def ones(values: Any) -> Any:
    return np.ones_like(values)


def zeros(values: Any) -> Any:
    return np.zeros_like(values)


def same_rows(values: Any) -> Any:
    return np.repeat(values[:1], len(values), axis=0)


def next_rows(values: Any) -> Any:
    return np.roll(values, -1, axis=0)


def rows_reversed(values: Any) -> Any:
    return values[::-1]


def halves_swapped(values: Any) -> Any:
    return np.roll(values, len(values) // 2, axis=0)


def thirds_turned(values: Any) -> Any:
    return np.roll(values, len(values) // 3, axis=0)
