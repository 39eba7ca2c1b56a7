"""(pure) What was seen of a machine -> a verdict, a sentence and a next step a line.

`fail` is what keeps rerankd from its main job, serving a model; `warn` is what could be better or will be
missed; everything else is `ok`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from rerankd.backends.llama.binaries import BUNDLED
from rerankd.backends.llama.build import cuda, tools
from rerankd.doctor import apt
from rerankd.doctor.seen import Seen, SeenEngine
from rerankd.machine import Gpu

Verdict = Literal["ok", "warn", "fail"]
_GIB = 2**30
_LEAST_MEMORY, _LEAST_DISK = 1 * _GIB, 1 * _GIB
_DOCTOR_AGAIN = "then run rerankd doctor again"


@dataclass(frozen=True, slots=True)
class Row:
    """One line. `step` is what to do next, "" where nothing needs doing; it may have several lines."""

    check: str
    verdict: Verdict
    says: str
    step: str = ""


def diagnose(seen: Seen, mirror: str | None = None) -> list[Row]:
    """All rows, in the order in which things are needed."""
    return [
        *_cpu(seen),
        _memory(seen),
        *_gpus(seen, mirror),
        *_building(seen),
        _disk(seen),
        _port(seen),
        *_engines(seen),
        _openvino(seen),
        *_precisions(seen),
        *_safer(seen),
        *_models(seen),
        *_online(seen),
    ]


def can_run(rows: Sequence[Row]) -> bool:
    """Whether nothing keeps rerankd from serving a model."""
    return all(row.verdict != "fail" for row in rows)


def _cpu(seen: Seen) -> Iterator[Row]:
    machine = seen.machine
    yield Row("cpu", "ok", f"{seen.cpu}, {machine.cores} core{'s' * (machine.cores > 1)} to use")
    have = set(seen.instructions)
    if not have:
        yield Row("instructions", "ok", "not told on this system")
        return
    listed = ", ".join(seen.instructions)
    newer = have & {"avx512f", "avx_vnni", "amx_tile", "i8mm"}
    bundled = seen.choice is not None and seen.choice.name == BUNDLED
    if "avx" in have and "avx2" not in have:
        yield Row(
            "instructions",
            "fail" if bundled else "ok",
            f"{listed}: no AVX2, which the bundled llama.cpp is built for",
            "rerankd engine build" if bundled else "",
        )
    elif bundled and newer:
        yield Row(
            "instructions",
            "warn",
            f"{listed}; the bundled llama.cpp is built for AVX2 and leaves {', '.join(sorted(newer))} unused",
            "for a faster engine: rerankd engine build",
        )
    else:
        by = f", used by {seen.choice.name}" if seen.choice is not None and not bundled else ""
        yield Row("instructions", "ok", listed + by)


def _memory(seen: Seen) -> Row:
    total = seen.machine.memory_bytes
    if total is None:
        return Row("memory", "ok", "not told on this system")
    says = f"{total / _GIB:.1f} GiB to use"
    if total < _LEAST_MEMORY:
        return Row(
            "memory", "warn", f"{says}: only the smallest models fit", "take models of less than 500 MB"
        )
    return Row("memory", "ok", says)


def _gpus(seen: Seen, mirror: str | None) -> Iterator[Row]:
    gpus = seen.machine.gpus
    if not gpus:
        if seen.nvidia_card:
            why = "nvidia-smi finds none" if seen.nvidia_smi else "its driver is not installed"
            yield Row(
                "gpu",
                "warn",
                f"there is an NVIDIA card, but {why}",
                f"install the driver (Ubuntu: sudo ubuntu-drivers install; Debian: sudo apt install "
                f"nvidia-driver), restart, {_DOCTOR_AGAIN}",
            )
        else:
            yield Row("gpu", "ok", "no NVIDIA card; models run on the CPU")
        if seen.toolkit is not None:
            yield Row("cuda", "ok", f"{seen.toolkit.name}, and no card to build for")
        return
    for gpu in gpus:
        memory = f"{gpu.free_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB free" * bool(
            gpu.total_bytes
        )
        told = ", ".join(
            filter(None, (gpu.name, memory, f"compute {gpu.compute_capability}", f"driver {gpu.driver}"))
        )
        unused = seen.choice is not None and seen.choice.on_cpu
        yield Row(
            "gpu",
            "warn" if unused else "ok",
            told + (", not used by the engine in use" if unused else ""),
            "rerankd engine build --backend cuda" if unused and _ready_for_cuda(seen) else "",
        )
    yield _toolkit(seen, gpus, mirror)


def _ready_for_cuda(seen: Seen) -> bool:
    return seen.toolkit is not None and not cuda.lacks(seen.toolkit) and not tools.missing(seen.tools)


def _toolkit(seen: Seen, gpus: Sequence[Gpu], mirror: str | None) -> Row:
    toolkit = seen.toolkit
    lacking = cuda.lacks(toolkit)
    if toolkit is None or lacking:
        what = f"{toolkit.name} lacks {' and '.join(lacking)}" if toolkit is not None else "no nvcc"
        return Row(
            "cuda", "warn", f"{what}: no engine can be built for the card", _install(seen, gpus, mirror)
        )
    where = f"{toolkit.name} in {toolkit.root}"
    for gpu in gpus:
        if not cuda.driver_runs(gpu.driver, toolkit.release):
            needed = cuda.OLDEST_DRIVERS.get(toolkit.release[0], 0)
            return Row(
                "cuda",
                "warn",
                f"{where} and driver {gpu.driver} do not fit together: it needs {needed} or newer",
                "update the driver, or install an older toolkit",
            )
        if not cuda.compiles_for(toolkit.release, gpu.compute_capability):
            return Row(
                "cuda",
                "warn",
                f"{where} does not compile for compute {gpu.compute_capability} ({gpu.name})",
                "install another toolkit, and name it with --cuda-home",
            )
    return Row("cuda", "ok", f"{where} fits the driver and the card")


def _install(seen: Seen, gpus: Sequence[Gpu], mirror: str | None) -> str:
    found = apt.commands(seen.release, seen.architecture, mirror)
    wheels = "without root: rerankd engine build --backend cuda --cuda-toolkit wheels"
    new_enough = all(cuda.driver_runs(gpu.driver, (13, 0)) for gpu in gpus)
    recent = all(cuda.compiles_for((13, 0), gpu.compute_capability) for gpu in gpus)
    if not found:
        return (
            wheels if new_enough and recent else "install the CUDA toolkit by NVIDIA's guide for this system"
        )
    steps = [*found, "rerankd engine build --backend cuda"]
    return "\n".join([*steps, wheels] if new_enough and recent else steps)


def _building(seen: Seen) -> Iterator[Row]:
    found, sentences = seen.tools, tools.missing(seen.tools)
    # Who has an engine of his own does not miss them.
    verdict: Verdict = "ok" if seen.choice is not None and seen.choice.name != BUNDLED else "warn"
    if sentences:
        yield Row("build tools", verdict, "an engine can't be built here", "\n".join(sentences))
        return
    by = "ninja" if found.ninja else "make"
    says = f"cmake {found.cmake_version}, {by}, {found.compiler}" + (", ccache" if found.ccache else "")
    yield Row("build tools", "ok", says)
    yield Row("libcurl", "ok", "not needed: rerankd fetches models itself")


def _disk(seen: Seen) -> Row:
    if seen.home_problem:
        return Row("disk", "fail", seen.home_problem, "name another folder with RERANKD_HOME")
    says = f"{seen.free_bytes / _GIB:.1f} GiB free in {seen.home}"
    if seen.free_bytes < _LEAST_DISK:
        return Row("disk", "warn", f"{says}: too little for most models", "make room, or set RERANKD_HOME")
    return Row("disk", "ok", says)


def _port(seen: Seen) -> Row:
    if seen.serves is not None:
        return Row(
            "port", "ok", f"rerankd runs at {seen.address} and serves {', '.join(seen.serves) or 'nothing'}"
        )
    if seen.port_problem:
        return Row("port", "fail", seen.port_problem.partition(". ")[0], "choose another with --port")
    return Row("port", "ok", f"{seen.address} is free")


def _engines(seen: Seen) -> Iterator[Row]:
    used = seen.choice.name if seen.choice is not None else ""
    for engine in seen.engines:
        yield _engine(engine, is_used=engine.name == used)
    if seen.choice is None:
        yield Row("engine", "fail", seen.choice_problem, "rerankd engine list")
    else:
        yield Row("engine", "ok", f"{used} is used: {seen.choice.reason}")


def _openvino(seen: Seen) -> Row:
    if seen.openvino:
        return Row("openvino", "ok", f"{seen.openvino}: encoders run on it, where no GPU does the work")
    return Row(
        "openvino",
        "ok",
        "not installed: encoders run on llama.cpp",
        "for encoders that are faster on a CPU: pip install 'rerankd[openvino]'",
    )


def _precisions(seen: Seen) -> Iterator[Row]:
    for one in seen.precisions:
        check = f"precision {one.name}"
        if not one.precision:
            yield Row(check, "ok", "not chosen yet: the first start tries whether bf16 is worth it")
        elif one.before and one.before != one.precision:
            step = f"it holds from the next load on: rerankd reload {one.name}, or a restart"
            yield Row(check, "ok", f"{one.precision}, until now {one.before}: {one.why}", step)
        else:
            again = "again " * bool(one.before)
            yield Row(check, "ok", f"{again}{one.precision}: {one.why}")


def _safer(seen: Seen) -> Iterator[Row]:
    for name, words in seen.safer:
        step = f"to try the better settings: rerankd reload {name}, or rerankd state clear safer_settings"
        yield Row(f"settings of {name}", "warn", f"safer ones: {words}", step)


def _engine(engine: SeenEngine, *, is_used: bool) -> Row:
    name = f"engine {engine.name}"
    number = f"b{engine.build}, " if engine.build and f"b{engine.build}" not in engine.name else ""
    if not engine.runs_here:
        verdict: Verdict = "fail" if is_used else "warn"
        return Row(
            name, verdict, "made for another CPU", f"rerankd engine remove {engine.name}, and build anew"
        )
    if engine.outcome is None:
        return Row(name, "ok", f"{number}not tested")
    if engine.outcome.passed:
        return Row(name, "ok", f"{number}smoke test {engine.outcome.text}")
    step = "rerankd engine use bundled" if engine.name != BUNDLED else "rerankd engine build"
    said = f"{number}fails its smoke test: {engine.outcome.text}"
    return Row(name, "fail" if is_used else "warn", said, step if is_used else "")


def _models(seen: Seen) -> Iterator[Row]:
    if seen.model_problem:
        yield Row("model", "fail", seen.model_problem, "rerankd list")
    elif not seen.models:
        yield Row(
            "model",
            "ok",
            "none here yet: rerankd serve fetches a small one",
            "for a real one: rerankd pull qwen3-reranker-0.6b",
        )
    for model in seen.models:
        fits = seen.machine.memory_bytes is None or model.size_bytes <= seen.machine.memory_bytes
        bad: Verdict = "fail" if model.is_wanted else "warn"
        size = f"{model.size_bytes / 1e6:.0f} MB"
        if not model.scorable:
            yield Row(f"model {model.name}", bad, model.verdict, f"rerankd show {model.name}")
        elif not fits and seen.choice is not None and seen.choice.on_cpu:
            yield Row(f"model {model.name}", bad, f"{size}, more than there is memory", "take a smaller one")
        else:
            served = ", to be served" if model.is_wanted else ""
            yield Row(f"model {model.name}", "ok", f"{size}{served}; {model.verdict}")


def _online(seen: Seen) -> Iterator[Row]:
    for place, problem in (seen.online or {}).items():
        if problem:
            yield Row(place, "warn", f"can't be reached: {problem}", "check the network and HTTPS_PROXY")
        else:
            yield Row(place, "ok", "can be reached")
