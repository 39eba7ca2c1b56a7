"""The observations of `rerankd doctor` about a machine: the input of its checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rerankd.backends.base import Check
from rerankd.machine import Gpu, Machine


@dataclass(frozen=True, slots=True)
class SeenModel:
    """A model on this machine. `outcome` is how it is scored or why it is refused, in words."""

    name: str
    size_bytes: int
    scorable: bool
    outcome: str
    is_wanted: bool = False


@dataclass(frozen=True, slots=True)
class SeenUpstream:
    """A server in [upstreams.NAME]: its models, and why it can't answer, "" if it can."""

    name: str
    url: str
    models: tuple[str, ...]
    problem: str


@dataclass(frozen=True, slots=True)
class Seen:
    """All observations. A `..._problem` is "" if there is none.

    `usable_cards`: the GPUs that engines can use; None: unknown. `nvidia_card`: the PCI bus has an NVIDIA
    GPU. `serves`: the models of the rerankd that runs at `address`; None: none runs there. `backends`: each
    backend's checks of the machine. `engines`: their checks of the models to be served. `safer`: models that
    run with safer settings after crashes, and these settings in words. `online`: for each host why it can't
    be reached, "" if it can; None: not checked.
    """

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
    upstreams: tuple[SeenUpstream, ...] = ()
