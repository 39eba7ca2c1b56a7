"""(pure) The engines that can run here, each as a name and the environment that makes a service use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rerankd.backends.base import Offer
from rerankd.backends.llama.binaries import BUNDLED
from rerankd.backends.llama.options import LlamaOptions
from rerankd.config import Settings

_BUNDLED = "llama.cpp (bundled)"
# What chooses the engine, and llama.cpp's program; taken away where another one is to run.
_CHOICE = ("RERANKD_ENGINE", "LLAMA_PATH", "RERANKD_LLAMA_PATH")


@dataclass(frozen=True, slots=True)
class EngineRow:
    """`without` are environment names that are taken away, `settings` those that are set."""

    name: str
    without: tuple[str, ...]
    settings: Mapping[str, str]

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """`environ` as a service with this engine is to have it."""
        kept = {name: value for name, value in environ.items() if name not in self.without}
        return {**kept, **self.settings}


def as_set(chosen: Offer) -> EngineRow:
    """The engine that rerankd has chosen for the model."""
    return EngineRow(_name(chosen), (), {})


def all_of(settings: Settings, unnamed: Offer) -> list[EngineRow]:
    """Every engine at hand: OpenVINO where it can run the model, the bundled llama.cpp, and the llama-server
    that the settings name. `unnamed` is what rerankd chooses where the settings name none."""
    rows = [EngineRow(_BUNDLED, _CHOICE, {"RERANKD_ENGINE": "llama"})]
    if unnamed.backend.name == "openvino":
        rows.insert(0, EngineRow(_name(unnamed), _CHOICE, {"RERANKD_ENGINE": "openvino"}))
    if program := settings.options(LlamaOptions).llama_path:
        own = {"RERANKD_ENGINE": "llama", "LLAMA_PATH": str(program)}
        rows.append(EngineRow(str(program), _CHOICE, own))
    return rows


def _name(chosen: Offer) -> str:
    return _BUNDLED if chosen.name == BUNDLED else chosen.name
