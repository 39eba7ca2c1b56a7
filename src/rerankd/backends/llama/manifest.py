"""What is known of an engine that was built: the file `manifest.json` in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter

Backend = Literal["cpu", "cuda", "vulkan", "metal", "hip"]
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


_FORM = TypeAdapter(Manifest)


def render(manifest: Manifest) -> str:
    """The file's text."""
    return _FORM.dump_json(manifest, indent=2).decode() + "\n"


def parse(text: str) -> Manifest:
    """The manifest in a file's text. Raises ValueError where it is none."""
    return _FORM.validate_json(text)
