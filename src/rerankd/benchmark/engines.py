"""(pure) The engines that can run here, each as a name and the environment that makes a service use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rerankd.config import Settings

# What chooses llama.cpp's program; taken away for the bundled one.
_PROGRAM = ("LLAMA_PATH", "RERANKD_LLAMA_PATH")


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


def as_set(settings: Settings) -> EngineRow:
    """The engine that the settings choose."""
    return EngineRow(_program(settings), (), {})


def all_of(settings: Settings) -> list[EngineRow]:
    """Every engine at hand: the bundled llama.cpp, and the llama-server that the settings name."""
    rows = [EngineRow("llama.cpp (bundled)", _PROGRAM, {})]
    if settings.llama_path:
        rows.append(EngineRow(_program(settings), _PROGRAM, {"LLAMA_PATH": str(settings.llama_path)}))
    return rows


def _program(settings: Settings) -> str:
    return str(settings.llama_path) if settings.llama_path else "llama.cpp (bundled)"
