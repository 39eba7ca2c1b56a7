"""(pure) Choose the llama.cpp binary that runs a model, and explain the choice.

The order is: the user's own (`llama_path`), the one chosen with `rerankd engine use`, the best of those built
on this machine, the bundled one. An engine too old for the model is skipped, or rejected if the user chose
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rerankd.backends.llama.manifest import Manifest
from rerankd.errors import EngineTooOld, EngineUnknown
from rerankd.machine import Gpu

BUNDLED = "bundled"


@dataclass(frozen=True, slots=True)
class Installed:
    """An engine that was built on this machine, and its program."""

    program: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name


@dataclass(frozen=True, slots=True)
class Binary:
    """A llama.cpp program. `gpus` are the GPUs it can use, () if none, None if unknown."""

    name: str
    program: tuple[str, ...]
    reason: str
    build: int = 0
    gpus: tuple[Gpu, ...] | None = ()

    @property
    def on_cpu(self) -> bool:
        """Whether no part of a model runs on a GPU."""
        return self.gpus == ()


@dataclass(frozen=True, slots=True)
class Binaries:
    """The candidates. `own` is the user's program, `own_build` its build number (0: unknown), `used` the name
    chosen with `engine use`, and `instructions` are those of this CPU."""

    own: Path | None
    own_build: int
    used: str
    installed: Sequence[Installed]
    bundled: Binary | None
    gpus: tuple[Gpu, ...]
    instructions: Sequence[str]


def choose(found: Binaries, *, needs: int = 0) -> Binary:
    """Choose the engine for a model that needs llama.cpp build `needs` or newer.

    If the engine chosen with `engine use` was removed, another one is chosen, and the reason says so. Raises
    EngineTooOld if no engine is new enough or the one that the user chose is older, and EngineUnknown if
    there is no engine at all.
    """
    if found.own is not None:
        _check(found.own_build, needs, f"the llama-server {found.own}", "Set LLAMA_PATH to a newer one")
        # The user's own program may use a GPU that rerankd can't see.
        return Binary(
            str(found.own), (str(found.own),), "it is set as llama_path", found.own_build, found.gpus or None
        )
    if found.used == BUNDLED and found.bundled is not None:
        _check(found.bundled.build, needs, "the bundled llama.cpp", "Build one: rerankd engine build")
        return replace(found.bundled, reason="chosen with rerankd engine use")
    if found.used and found.used != BUNDLED:
        return _used(found, needs)
    return _best(found, needs)


def _best(found: Binaries, needs: int) -> Binary:
    """Return rerankd's own choice."""
    fitting = [one for one in found.installed if runs_here(one, found.instructions)]
    new_enough = [one for one in fitting if not one.manifest.build or one.manifest.build >= needs]
    if new_enough:
        best = max(new_enough, key=lambda one: _rank(one, found.gpus))
        more = ", the newest of those built here" if len(new_enough) > 1 else ""
        return _installed(best, found.gpus, f"it was built for this machine{more}")
    if found.bundled is None:
        raise EngineUnknown(
            "No engine is installed: llama.cpp comes with rerankd on Linux and macOS only. Set LLAMA_PATH to "
            "a llama-server, or build one: rerankd engine build."
        )
    _check(found.bundled.build, needs, "the bundled llama.cpp", "Build a newer one: rerankd engine build")
    if fitting:
        reason = f"the engines built here are older than b{needs}, which this model needs"
    elif found.installed:
        reason = "the engines built here are for another CPU"
    else:
        reason = "no other engine is installed; rerankd engine build makes a faster one"
    return replace(found.bundled, reason=reason)


def runs_here(one: Installed, instructions: Sequence[str]) -> bool:
    """Whether this CPU has all instruction sets that the engine was built for."""
    return set(one.manifest.instructions) <= set(instructions)


def _used(found: Binaries, needs: int) -> Binary:
    one = next((one for one in found.installed if one.name == found.used), None)
    if one is None:
        instead = _best(found, needs)
        gone = f"{found.used}, chosen with rerankd engine use, was removed"
        return replace(instead, reason=f"{gone}; {instead.reason}")
    _check(one.manifest.build, needs, f"the engine {one.name}", "Build a newer one: rerankd engine build")
    return _installed(one, found.gpus, "chosen with rerankd engine use")


def _rank(one: Installed, gpus: Sequence[Gpu]) -> tuple[bool, int, str]:
    """The sort key: first engines that fit the machine (GPU or not), then the newest build."""
    manifest = one.manifest
    fits = (manifest.backend == "cpu") != bool(gpus) if manifest.backend in ("cpu", "cuda") else True
    return fits, manifest.build, manifest.made_at


def _installed(one: Installed, gpus: tuple[Gpu, ...], reason: str) -> Binary:
    backend = one.manifest.backend
    usable = {"cpu": (), "cuda": gpus}.get(backend)  # the GPU memory of other backends is unknown
    return Binary(one.name, (str(one.program),), reason, one.manifest.build, usable)


def _check(build: int, needs: int, what: str, way_out: str) -> None:
    """Raise EngineTooOld for a build older than `needs`. An unknown build number (0) is accepted."""
    if build and build < needs:
        raise EngineTooOld(
            f"This model needs llama.cpp b{needs} or newer, but {what} is b{build}. {way_out}."
        )
