"""What doctor has seen of a machine: one value, that the checks judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rerankd.backends.llama.binaries import Binary
from rerankd.backends.llama.build.cuda import Toolkit
from rerankd.backends.llama.build.smoke import Outcome
from rerankd.backends.llama.build.tools import Tools
from rerankd.machine import Machine


@dataclass(frozen=True, slots=True)
class SeenEngine:
    """An engine, whether this CPU can run it, and what the smoke test found; None: it was not run."""

    name: str
    build: int
    runs_here: bool = True
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class SeenModel:
    """A model on this machine: its size in bytes, whether it can be scored, and the verdict in words."""

    name: str
    size_bytes: int
    scorable: bool
    verdict: str
    is_wanted: bool = False


@dataclass(frozen=True, slots=True)
class SeenPrecision:
    """The precision that OpenVINO computes a model in here, and why; "" where it is not chosen yet. `before`
    is what it was until it was chosen again, "" where it was not."""

    name: str
    precision: str
    why: str
    before: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """All of it. `problem` texts are "" where there is none. `online` maps a place to what is wrong with
    reaching it, and is None when that was not asked for. `nvidia_card` says that the PCI bus has one;
    `openvino` is its version, `safer` the models that run with safer settings after crashes, with these in
    words."""

    machine: Machine
    cpu: str
    instructions: tuple[str, ...]
    architecture: str
    release: Mapping[str, str]
    nvidia_card: bool
    nvidia_smi: bool
    toolkit: Toolkit | None
    tools: Tools
    home: Path
    home_problem: str
    free_bytes: int
    address: str
    port_problem: str
    engines: tuple[SeenEngine, ...]
    choice: Binary | None
    choice_problem: str
    models: tuple[SeenModel, ...]
    model_problem: str = ""
    # The models that a rerankd at `address` serves; None where no rerankd answers there.
    serves: tuple[str, ...] | None = None
    openvino: str = ""
    precisions: tuple[SeenPrecision, ...] = ()
    safer: tuple[tuple[str, str], ...] = ()
    online: Mapping[str, str] | None = field(default=None)
