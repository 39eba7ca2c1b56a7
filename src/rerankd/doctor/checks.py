"""(pure) The checks of `rerankd doctor`: observations of a machine -> status, text and next step per line.

`fail`: rerankd can't serve a model. `warn`: something is slower than necessary, or will be needed. Else `ok`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rerankd.backends.base import Check, Status
from rerankd.doctor.observations import Seen

_GIB = 2**30
_LEAST_MEMORY, _LEAST_DISK = 1 * _GIB, 1 * _GIB


def diagnose(seen: Seen) -> list[Check]:
    """Return all lines, in the order in which serving a model needs them."""
    return [
        _cpu(seen),
        _memory(seen),
        *_gpus(seen),
        _disk(seen),
        _port(seen),
        *seen.backends,
        *_upstreams(seen),
        *_models(seen),
        *seen.engines,
        *_safer(seen),
        *(Check.reachable(place, problem) for place, problem in (seen.online or {}).items()),
    ]


def can_run(rows: Sequence[Check]) -> bool:
    """Whether rerankd can serve a model here."""
    return all(row.status != "fail" for row in rows)


def _cpu(seen: Seen) -> Check:
    cores = seen.machine.cores
    return Check("cpu", "ok", f"{seen.cpu}, {cores} core{'s' * (cores > 1)} available")


def _memory(seen: Seen) -> Check:
    total = seen.machine.memory_bytes
    if total is None:
        return Check("memory", "ok", "unknown on this system")
    says = f"{total / _GIB:.1f} GiB available"
    if total < _LEAST_MEMORY:
        return Check(
            "memory", "warn", f"{says}: only the smallest models fit", "use models of less than 500 MB"
        )
    return Check("memory", "ok", says)


def _gpus(seen: Seen) -> Iterator[Check]:
    gpus = seen.machine.gpus
    if not gpus and seen.nvidia_card:
        why = "nvidia-smi does not find it" if seen.nvidia_smi else "its driver is not installed"
        yield Check(
            "gpu",
            "warn",
            f"this machine has an NVIDIA GPU, but {why}",
            "install the driver (Ubuntu: sudo ubuntu-drivers install; Debian: sudo apt install "
            "nvidia-driver), restart, then run rerankd doctor again",
        )
    elif not gpus:
        yield Check("gpu", "ok", "no NVIDIA GPU; models run on the CPU")
    unused = seen.usable_cards == ()
    for gpu in gpus:
        memory = f"{gpu.free_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB free" * bool(
            gpu.total_bytes
        )
        about = ", ".join(
            filter(None, (gpu.name, memory, f"compute {gpu.compute_capability}", f"driver {gpu.driver}"))
        )
        says = f"{about}; the engine in use does not use it" if unused else about
        yield Check("gpu", "warn" if unused else "ok", says)


def _disk(seen: Seen) -> Check:
    if seen.home_problem:
        return Check("disk", "fail", seen.home_problem, "set RERANKD_HOME to another folder")
    says = f"{seen.free_bytes / _GIB:.1f} GiB free in {seen.home}"
    if seen.free_bytes < _LEAST_DISK:
        return Check(
            "disk",
            "warn",
            f"{says}: too little for most models",
            "free disk space, or set RERANKD_HOME to a folder on another disk",
        )
    return Check("disk", "ok", says)


def _port(seen: Seen) -> Check:
    if seen.serves is not None:
        return Check(
            "port", "ok", f"rerankd runs at {seen.address} and serves {', '.join(seen.serves) or 'nothing'}"
        )
    if seen.port_problem:
        return Check("port", "fail", seen.port_problem.partition(". ")[0], "choose another port with --port")
    return Check("port", "ok", f"{seen.address} is free")


def _safer(seen: Seen) -> Iterator[Check]:
    for name, words in seen.safer:
        step = f"to retry the normal settings: rerankd reload {name}, or rerankd state clear safer_settings"
        yield Check(f"settings of {name}", "warn", f"safer settings in use: {words}", step)


def _upstreams(seen: Seen) -> Iterator[Check]:
    # Without a model here, only these can answer.
    has_own = any(model.is_wanted for model in seen.models)
    is_needed = not has_own and all(one.problem for one in seen.upstreams)
    for one in seen.upstreams:
        name = f"upstream {one.name}"
        if one.problem:
            yield Check(
                name, "fail" if is_needed else "warn", one.problem, f"check [upstreams.{one.name}]: {one.url}"
            )
        else:
            yield Check(name, "ok", f"{one.url} serves {', '.join(one.models) or 'no model'}")


def _models(seen: Seen) -> Iterator[Check]:
    if seen.model_problem:
        yield Check("model", "fail", seen.model_problem, "rerankd list")
    elif not seen.models and not seen.upstreams:
        yield Check(
            "model",
            "ok",
            "no model yet: rerankd serve downloads a small one",
            "for a better one: rerankd pull qwen3-reranker-0.6b",
        )
    for model in seen.models:
        fits = seen.machine.memory_bytes is None or model.size_bytes <= seen.machine.memory_bytes
        bad: Status = "fail" if model.is_wanted else "warn"
        size = f"{model.size_bytes / 1e6:.0f} MB"
        if not model.scorable:
            yield Check(f"model {model.name}", bad, model.outcome, f"rerankd show {model.name}")
        elif not fits and seen.usable_cards == ():
            yield Check(
                f"model {model.name}", bad, f"{size}, more than the machine's memory", "use a smaller model"
            )
        else:
            served = ", to be served" if model.is_wanted else ""
            yield Check(f"model {model.name}", "ok", f"{size}{served}; {model.outcome}")
