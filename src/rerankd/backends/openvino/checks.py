"""(pure) What doctor says of OpenVINO, and of the precision that it computes a model in."""

from __future__ import annotations

from rerankd.backends.base import Check
from rerankd.backends.openvino.precision import Choice


def package(version: str) -> Check:
    """Whether it is installed; `version` is "" where it is not."""
    if version:
        return Check("openvino", "ok", f"{version}: encoders run on it, where no GPU does the work")
    return Check(
        "openvino",
        "ok",
        "not installed: encoders run on llama.cpp",
        "for encoders that are faster on a CPU: pip install 'rerankd[openvino]'",
    )


def precision(model: str, choice: Choice | None, before: Choice | None = None) -> Check:
    """The precision of a model; None where it is not chosen yet. `before` is what it was until it was chosen
    again, None where it was not."""
    check = f"precision {model}"
    if choice is None:
        return Check(check, "ok", "not chosen yet: the first start tries whether bf16 is worth it")
    says = f"{choice.precision}: {choice.why}"
    if before is None:
        return Check(check, "ok", says)
    if before.precision == choice.precision:
        return Check(check, "ok", f"again {says}")
    step = f"it holds from the next load on: rerankd reload {model}, or a restart"
    return Check(check, "ok", f"{choice.precision}, until now {before.precision}: {choice.why}", step)
