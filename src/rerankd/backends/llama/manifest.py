"""What is known of an engine that was built: the file `manifest.json` in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Backend = Literal["cpu", "cuda", "vulkan", "metal", "hip"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
FILE = "manifest.json"
PROGRAM = "llama-server"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One built engine.

    `build` is llama.cpp's build number, 0 where the source did not tell it. `instructions` are the CPU's
    instruction sets that it may use, by Linux's names: on a CPU without one of them it may die. `made_at` is
    an ISO time, `smoke` what the smoke test found, in words, and `notes` what a person should know.
    """

    name: str
    build: int
    backend: Backend
    source: str
    source_digest: str
    flags: tuple[str, ...]
    compiler: str
    cpu: str
    instructions: tuple[str, ...]
    made_at: str
    smoke: str
    notes: tuple[str, ...] = ()


def render(manifest: Manifest) -> str:
    """The file's text."""
    return json.dumps(asdict(manifest), indent=2) + "\n"


def parse(text: str) -> Manifest:
    """The manifest in a file's text. Raises ValueError where it is none."""
    value: Any = json.loads(text)
    try:
        lists = {key: tuple(value[key]) for key in ("flags", "instructions", "notes")}
        manifest = Manifest(**{**value, **lists})
    except (KeyError, TypeError) as error:
        raise ValueError(f"not an engine's manifest: {error}") from error
    if manifest.backend not in BACKENDS or not isinstance(manifest.build, int):
        raise ValueError("not an engine's manifest: backend or build are odd")
    return manifest
