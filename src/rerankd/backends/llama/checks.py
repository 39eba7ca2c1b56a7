"""(pure) doctor's checks for llama.cpp: observations of a machine -> lines with a status and a next step.

`fail`: llama.cpp can't run a model. `warn`: something could be better, or is missing for later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from rerankd.backends.base import Check, Status
from rerankd.backends.llama.binaries import BUNDLED, Binary
from rerankd.backends.llama.build import apt, cuda, tools
from rerankd.backends.llama.build.cuda import Toolkit
from rerankd.backends.llama.build.smoke import Outcome
from rerankd.backends.llama.build.tools import Tools
from rerankd.machine import Gpu


@dataclass(frozen=True, slots=True)
class SeenEngine:
    """An engine and its smoke test's outcome, which is None if this CPU can't run it."""

    name: str
    build: int
    outcome: Outcome | None


@dataclass(frozen=True, slots=True)
class Seen:
    """All observations. `choice_problem` explains why no engine could be chosen. `sources` is the problem
    with reaching the package index, which holds llama.cpp's source: "" if none, None if it was not
    checked."""

    instructions: tuple[str, ...]
    architecture: str
    release: Mapping[str, str]
    gpus: tuple[Gpu, ...]
    toolkit: Toolkit | None
    tools: Tools
    engines: tuple[SeenEngine, ...]
    choice: Binary | None
    choice_problem: str = ""
    sources: str | None = None


def diagnose(seen: Seen, cuda_mirror: str | None = None) -> list[Check]:
    """Return all lines, in the order in which things are needed."""
    found = [_instructions(seen), *_cuda(seen, cuda_mirror), *_building(seen)]
    if seen.sources is not None:
        found.append(Check.reachable("package index", seen.sources))
    return [*found, *_engines(seen)]


def _instructions(seen: Seen) -> Check:
    have = set(seen.instructions)
    if not have:
        return Check("instructions", "ok", "unknown on this system")
    listed = ", ".join(seen.instructions)
    newer = have & {"avx512f", "avx_vnni", "amx_tile", "i8mm"}
    bundled = seen.choice is not None and seen.choice.name == BUNDLED
    if "avx" in have and "avx2" not in have:
        return Check(
            "instructions",
            "fail" if bundled else "ok",
            f"{listed}: the bundled llama.cpp needs AVX2",
            "rerankd engine build" if bundled else "",
        )
    if bundled and newer:
        return Check(
            "instructions",
            "warn",
            f"{listed}; the bundled llama.cpp is built for AVX2 and does not use {', '.join(sorted(newer))}",
            "for a faster engine: rerankd engine build",
        )
    by = f", used by {seen.choice.name}" if seen.choice is not None and not bundled else ""
    return Check("instructions", "ok", listed + by)


def _cuda(seen: Seen, mirror: str | None) -> Iterator[Check]:
    if seen.gpus:
        yield _toolkit(seen, mirror)
    elif seen.toolkit is not None:
        yield Check("cuda", "ok", f"{seen.toolkit.name}, but no GPU to build for")


def _toolkit(seen: Seen, mirror: str | None) -> Check:
    toolkit = seen.toolkit
    lacking = cuda.lacks(toolkit)
    if toolkit is None or lacking:
        what = f"{toolkit.name} lacks {' and '.join(lacking)}" if toolkit is not None else "nvcc is missing"
        return Check("cuda", "warn", f"{what}: no engine can be built for the GPU", _install(seen, mirror))
    where = f"{toolkit.name} in {toolkit.root}"
    for gpu in seen.gpus:
        if not cuda.driver_runs(gpu.driver, toolkit.release):
            needed = cuda.OLDEST_DRIVERS.get(toolkit.release[0], 0)
            return Check(
                "cuda",
                "warn",
                f"{where} needs driver {needed} or newer, but the driver is {gpu.driver}",
                "update the driver, or install an older toolkit",
            )
        if not cuda.compiles_for(toolkit.release, gpu.compute_capability):
            return Check(
                "cuda",
                "warn",
                f"{where} does not compile for compute {gpu.compute_capability} ({gpu.name})",
                "install another toolkit and pass its folder as --cuda-home",
            )
    unused = seen.choice is not None and seen.choice.on_cpu and not tools.missing(seen.tools)
    step = "rerankd engine build --backend cuda" if unused else ""
    return Check("cuda", "ok", f"{where} supports the driver and the GPU", step)


def _install(seen: Seen, mirror: str | None) -> str:
    steps = apt.commands(seen.release, seen.architecture, mirror)
    if steps:
        steps.append("rerankd engine build --backend cuda")
    # The wheels are of CUDA 13.
    if all(
        cuda.driver_runs(gpu.driver, (13, 0)) and cuda.compiles_for((13, 0), gpu.compute_capability)
        for gpu in seen.gpus
    ):
        steps.append("without root: rerankd engine build --backend cuda --cuda-toolkit wheels")
    return "\n".join(steps) or "install the CUDA toolkit as NVIDIA's guide for this system describes"


def _building(seen: Seen) -> Iterator[Check]:
    found, sentences = seen.tools, tools.missing(seen.tools)
    # Build tools are not needed if another engine than the bundled one is used.
    status: Status = "ok" if seen.choice is not None and seen.choice.name != BUNDLED else "warn"
    if sentences:
        yield Check("build tools", status, "engines can't be built here", "\n".join(sentences))
        return
    by = "ninja" if found.ninja else "make"
    says = f"cmake {found.cmake_version}, {by}, {found.compiler}" + (", ccache" if found.ccache else "")
    yield Check("build tools", "ok", says)
    yield Check("libcurl", "ok", "not needed: rerankd downloads models itself")


def _engines(seen: Seen) -> Iterator[Check]:
    used = seen.choice.name if seen.choice is not None else ""
    for engine in seen.engines:
        yield _engine(engine, is_used=engine.name == used)
    if seen.choice is None:
        yield Check("engine", "fail", seen.choice_problem, "rerankd engine list")
    else:
        yield Check("engine", "ok", f"{used} is used: {seen.choice.reason}")


def _engine(engine: SeenEngine, *, is_used: bool) -> Check:
    name = f"engine {engine.name}"
    number = f"b{engine.build}, " if engine.build and f"b{engine.build}" not in engine.name else ""
    bad: Status = "fail" if is_used else "warn"
    if engine.outcome is None:
        return Check(
            name,
            bad,
            "built for another CPU",
            f"rerankd engine remove {engine.name}, then rerankd engine build",
        )
    if engine.outcome.passed:
        return Check(name, "ok", f"{number}smoke test {engine.outcome.text}")
    step = "rerankd engine use bundled" if engine.name != BUNDLED else "rerankd engine build"
    text = f"{number}fails its smoke test: {engine.outcome.text}"
    return Check(name, bad, text, step if is_used else "")
