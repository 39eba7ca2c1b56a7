"""Checkpoints of real sizes for tests: the shapes of a golden encoder, enlarged; their weights are a hole."""

from __future__ import annotations

import json
import re
from pathlib import Path

import checkpoints

_WIDTH, _INNER = 32, 48  # of the golden encoders
_FIRST_LAYER = re.compile(r"\.layers?\.0\.")


def write(name: str, folder: Path, blocks: int, width: int) -> Path:
    """The golden encoder `name` with this number of layers and this width, in a folder."""
    checkpoints.copy(
        name, folder, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=blocks,
        num_attention_heads=width // 64, pooler_hidden_size=None,
    )  # fmt: skip
    weights = folder / "model.safetensors"
    shapes: dict[str, list[int]] = {}
    for own, (_, shape, _) in checkpoints.read(weights).items():
        enlarged = [_enlarged(own, size, width) for size in shape]
        if _FIRST_LAYER.search(own):
            shapes |= {own.replace(".0.", f".{layer}."): enlarged for layer in range(blocks)}
        elif not re.search(r"\.layers?\.\d", own):
            shapes[own] = enlarged
    checkpoints.write_hollow(weights, shapes)
    assert json.loads((folder / "config.json").read_text())["num_hidden_layers"] == blocks
    return folder


def _enlarged(name: str, size: int, width: int) -> int:
    if "qkv" in name and size == 3 * _WIDTH:
        return 3 * width
    return {_WIDTH: width, _INNER: 4 * width, 2 * _INNER: 8 * width}.get(size, size)
