"""(pure) Which llama.cpp runs a model, and why.

The user's own (`llama_path`), else the one that `rerankd engine use` named, else the best of those that were
built here, else the bundled one. An engine that is older than the model needs is passed over, or refused
where the user named it.
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
    """An engine that was built here, and its program."""

    program: Path
    manifest: Manifest

    @property
    def name(self) -> str:
        return self.manifest.name


@dataclass(frozen=True, slots=True)
class Binary:
    """The program that runs. `gpus` are the cards it can use, () for none, None where that is not known."""

    name: str
    program: tuple[str, ...]
    reason: str
    build: int = 0
    gpus: tuple[Gpu, ...] | None = ()

    @property
    def on_cpu(self) -> bool:
        """Whether nothing of a model runs on a GPU."""
        return self.gpus == ()


@dataclass(frozen=True, slots=True)
class Binaries:
    """All that there is to choose from. `own` is the user's program, `own_build` its number (0: unknown);
    `used` the name that `engine use` left; `instructions` those of this CPU."""

    own: Path | None
    own_build: int
    used: str
    installed: Sequence[Installed]
    bundled: Binary | None
    gpus: tuple[Gpu, ...]
    instructions: Sequence[str]


def choose(found: Binaries, *, needs: int = 0) -> Binary:
    """The engine for a model that needs build `needs` of llama.cpp or a newer one.

    One that was named with `engine use` and is gone is passed over, and the reason says so. Raises
    EngineTooOld where there is none new enough, or the one the user named is older; EngineUnknown where there
    is none.
    """
    if found.own is not None:
        _check(found.own_build, needs, f"the llama-server {found.own}", "Set LLAMA_PATH to a newer one")
        # A program of the user's may use a GPU that rerankd can't see.
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
    """The one that rerankd itself takes."""
    fitting = [one for one in found.installed if runs_here(one, found.instructions)]
    new_enough = [one for one in fitting if not one.manifest.build or one.manifest.build >= needs]
    if new_enough:
        best = max(new_enough, key=lambda one: _rank(one, found.gpus))
        more = ", the newest of those built here" if len(new_enough) > 1 else ", and it was built here"
        return _installed(best, found.gpus, f"it is made for this machine{more}")
    if found.bundled is None:
        raise EngineUnknown(
            "There is no engine: llama.cpp comes with rerankd on Linux and macOS only. Set LLAMA_PATH to a "
            "llama-server, or build one: rerankd engine build."
        )
    _check(found.bundled.build, needs, "the bundled llama.cpp", "Build a newer one: rerankd engine build")
    if fitting:
        reason = f"those built here are older than b{needs}, which this model needs"
    elif found.installed:
        reason = "those built here are made for another CPU"
    else:
        reason = "no other was built: rerankd engine build makes a faster one"
    return replace(found.bundled, reason=reason)


def runs_here(one: Installed, instructions: Sequence[str]) -> bool:
    """Whether this CPU has all instruction sets that the engine may use."""
    return set(one.manifest.instructions) <= set(instructions)


def _used(found: Binaries, needs: int) -> Binary:
    one = next((one for one in found.installed if one.name == found.used), None)
    if one is None:
        instead = _best(found, needs)
        gone = f"{found.used}, chosen with rerankd engine use, is not there any more"
        return replace(instead, reason=f"{gone}; {instead.reason}")
    _check(one.manifest.build, needs, f"the engine {one.name}", "Build a newer one: rerankd engine build")
    return _installed(one, found.gpus, "chosen with rerankd engine use")


def _rank(one: Installed, gpus: Sequence[Gpu]) -> tuple[bool, int, str]:
    """What uses the GPU there is comes first, and without one what does not ask for one; then the newest."""
    manifest = one.manifest
    fits = (manifest.backend == "cpu") != bool(gpus) if manifest.backend in ("cpu", "cuda") else True
    return fits, manifest.build, manifest.made_at


def _installed(one: Installed, gpus: tuple[Gpu, ...], reason: str) -> Binary:
    backend = one.manifest.backend
    usable = {"cpu": (), "cuda": gpus}.get(backend)  # of the others nothing tells how much memory there is
    return Binary(one.name, (str(one.program),), reason, one.manifest.build, usable)


def _check(build: int, needs: int, what: str, way_out: str) -> None:
    """A build number of 0 is not known, and not held against the engine."""
    if build and build < needs:
        raise EngineTooOld(
            f"This model needs llama.cpp b{needs} or newer, and {what} is b{build}. {way_out}."
        )
