"""(pure) doctor's check for ONNX Runtime: whether it is installed, and what int8 would gain on this CPU."""

from __future__ import annotations

from collections.abc import Collection

from rerankd.backends.base import Check

_HALF = frozenset(("amx_bf16", "avx512_bf16"))
INSTALL = "pip install 'rerankd[onnx]'"


def gain(instructions: Collection[str]) -> str:
    """What int8 is worth on a CPU with these instructions (see machine.py), as a clause."""
    if _HALF & set(instructions):
        return "this CPU has bf16, which is nearer to float32 than int8, but slower where it was measured"
    if "avx2" in instructions:
        return "on this CPU, which has no bf16, int8 is the fastest arithmetic"
    return "int8 should be the fastest arithmetic on this CPU, but it has not been measured there"


def package(version: str, instructions: Collection[str]) -> Check:
    """Report whether ONNX Runtime is installed; `version` is "" if not."""
    says = f"{version}: models with precision = int8 run on it" if version else "not installed"
    step = 'to use it for a model: precision = "int8"' if version else f"to use it: {INSTALL}"
    return Check("onnxruntime", "ok", f"{says}; {gain(instructions)}", step)
