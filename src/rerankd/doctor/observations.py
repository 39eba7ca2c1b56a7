"""What doctor has seen of a machine: one value, that the checks judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rerankd.backends.base import Check
from rerankd.machine import Gpu, Machine


@dataclass(frozen=True, slots=True)
class SeenModel:
    """A model on this machine: its size in bytes, whether it can be scored, and the verdict in words."""

    name: str
    size_bytes: int
    scorable: bool
    verdict: str
    is_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """All of it. `problem` texts are "" where there is none. `usable_cards` are those that engines can use;
    None where that is not known. `nvidia_card` says that the PCI bus has one. `serves` are the models that a
    rerankd at `address` serves; None where no rerankd answers there. `backends` is what each backend says of
    the machine, `engines` what it says of the models to be served, `safer` the models that run with safer
    settings after crashes, with these in words. `online` maps a place to what is wrong with reaching it, and
    is None when that was not asked for."""

    machine: Machine
    cpu: str
    usable_cards: tuple[Gpu, ...] | None
    nvidia_card: bool
    nvidia_smi: bool
    home: Path
    home_problem: str
    free_bytes: int
    address: str
    port_problem: str
    models: tuple[SeenModel, ...]
    model_problem: str = ""
    serves: tuple[str, ...] | None = None
    backends: tuple[Check, ...] = ()
    engines: tuple[Check, ...] = ()
    safer: tuple[tuple[str, str], ...] = ()
    online: Mapping[str, str] | None = None
