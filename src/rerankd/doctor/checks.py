"""(pure) What was seen of a machine -> a verdict, a sentence and a next step a line.

`fail` is what keeps rerankd from its main job, serving a model; `warn` is what could be better or will be
missed; everything else is `ok`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rerankd.backends.base import Check, Verdict
from rerankd.doctor.observations import Seen

_GIB = 2**30
_LEAST_MEMORY, _LEAST_DISK = 1 * _GIB, 1 * _GIB


def diagnose(seen: Seen) -> list[Check]:
    """All lines, in the order in which things are needed."""
    return [
        _cpu(seen),
        _memory(seen),
        *_gpus(seen),
        _disk(seen),
        _port(seen),
        *seen.backends,
        *_models(seen),
        *seen.engines,
        *_safer(seen),
        *(Check.reachable(place, problem) for place, problem in (seen.online or {}).items()),
    ]


def can_run(rows: Sequence[Check]) -> bool:
    """Whether nothing keeps rerankd from serving a model."""
    return all(row.verdict != "fail" for row in rows)


def _cpu(seen: Seen) -> Check:
    cores = seen.machine.cores
    return Check("cpu", "ok", f"{seen.cpu}, {cores} core{'s' * (cores > 1)} to use")


def _memory(seen: Seen) -> Check:
    total = seen.machine.memory_bytes
    if total is None:
        return Check("memory", "ok", "not told on this system")
    says = f"{total / _GIB:.1f} GiB to use"
    if total < _LEAST_MEMORY:
        return Check(
            "memory", "warn", f"{says}: only the smallest models fit", "take models of less than 500 MB"
        )
    return Check("memory", "ok", says)


def _gpus(seen: Seen) -> Iterator[Check]:
    gpus = seen.machine.gpus
    if not gpus and seen.nvidia_card:
        why = "nvidia-smi finds none" if seen.nvidia_smi else "its driver is not installed"
        yield Check(
            "gpu",
            "warn",
            f"there is an NVIDIA card, but {why}",
            "install the driver (Ubuntu: sudo ubuntu-drivers install; Debian: sudo apt install "
            "nvidia-driver), restart, then run rerankd doctor again",
        )
    elif not gpus:
        yield Check("gpu", "ok", "no NVIDIA card; models run on the CPU")
    unused = seen.usable_cards == ()
    for gpu in gpus:
        memory = f"{gpu.free_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB free" * bool(
            gpu.total_bytes
        )
        told = ", ".join(
            filter(None, (gpu.name, memory, f"compute {gpu.compute_capability}", f"driver {gpu.driver}"))
        )
        says = f"{told}, not used by the engine in use" if unused else told
        yield Check("gpu", "warn" if unused else "ok", says)


def _disk(seen: Seen) -> Check:
    if seen.home_problem:
        return Check("disk", "fail", seen.home_problem, "name another folder with RERANKD_HOME")
    says = f"{seen.free_bytes / _GIB:.1f} GiB free in {seen.home}"
    if seen.free_bytes < _LEAST_DISK:
        return Check("disk", "warn", f"{says}: too little for most models", "make room, or set RERANKD_HOME")
    return Check("disk", "ok", says)


def _port(seen: Seen) -> Check:
    if seen.serves is not None:
        return Check(
            "port", "ok", f"rerankd runs at {seen.address} and serves {', '.join(seen.serves) or 'nothing'}"
        )
    if seen.port_problem:
        return Check("port", "fail", seen.port_problem.partition(". ")[0], "choose another with --port")
    return Check("port", "ok", f"{seen.address} is free")


def _safer(seen: Seen) -> Iterator[Check]:
    for name, words in seen.safer:
        step = f"to try the better settings: rerankd reload {name}, or rerankd state clear safer_settings"
        yield Check(f"settings of {name}", "warn", f"safer ones: {words}", step)


def _models(seen: Seen) -> Iterator[Check]:
    if seen.model_problem:
        yield Check("model", "fail", seen.model_problem, "rerankd list")
    elif not seen.models:
        yield Check(
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
            yield Check(f"model {model.name}", bad, model.verdict, f"rerankd show {model.name}")
        elif not fits and seen.usable_cards == ():
            yield Check(
                f"model {model.name}", bad, f"{size}, more than there is memory", "take a smaller one"
            )
        else:
            served = ", to be served" if model.is_wanted else ""
            yield Check(f"model {model.name}", "ok", f"{size}{served}; {model.verdict}")
