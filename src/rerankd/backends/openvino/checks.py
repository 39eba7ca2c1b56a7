"""(pure) doctor's checks for OpenVINO: whether it is installed, and the precision of each model."""

from __future__ import annotations

from rerankd.backends.base import Check
from rerankd.backends.openvino.precision import Choice


def package(version: str) -> Check:
    """Report whether OpenVINO is installed; `version` is "" if not."""
    if version:
        causal = "Qwen2, Qwen3 and Gemma if it is the faster engine here"
        runs = f"encoders run on it unless a GPU is used, and {causal}"
        return Check("openvino", "ok", f"{version}: {runs}")
    return Check(
        "openvino",
        "ok",
        "not installed: GGUF files run on llama.cpp, and safetensors only on PyTorch",
        "for safetensors and faster models on a CPU: pip install 'rerankd[openvino]'",
    )


def precision(model: str, choice: Choice | None, before: Choice | None = None) -> Check:
    """Report the precision of a model. `choice` is None if it is not chosen yet. `before` is the previous
    choice, if it was just measured again."""
    check = f"precision {model}"
    if choice is None:
        return Check(check, "ok", "not chosen yet: the first load tests whether bf16 is faster")
    says = f"{choice.precision}: {choice.why}"
    if before is None:
        return Check(check, "ok", says)
    if before.precision == choice.precision:
        return Check(check, "ok", f"unchanged: {says}")
    step = f"it takes effect at the next load: rerankd reload {model}, or a restart"
    return Check(check, "ok", f"{choice.precision}, before {before.precision}: {choice.why}", step)
