"""The manifest of an engine built on this machine: `manifest.json` in its folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import TypeAdapter

Backend = Literal["cpu", "cuda", "vulkan", "metal", "hip"]
FILE = "manifest.json"
PROGRAM = "llama-server"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The facts about one built engine.

    `build` is llama.cpp's build number, 0 if the source did not contain it. `instructions` are the CPU
    instruction sets that the engine may use, by their Linux names; it may crash on a CPU that lacks one.
    `made_at` is an ISO time, `smoke` the result of the smoke test in words, and `notes` are for the user.
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
    """Return the manifest as the text of its file."""
    return _FORM.dump_json(manifest, indent=2).decode() + "\n"


def parse(text: str) -> Manifest:
    """Parse the text of a manifest file. Raises ValueError."""
    return _FORM.validate_json(text)
