"""(pure) What is said of a build that failed: the cause, the compiler's own lines, the next step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_QUOTED_LINES = 12
_NO_CUDA = "CUDA's headers and libraries are not there: rerankd doctor tells more."
_NO_COMPILER = "There is no {} compiler. Debian and Ubuntu: sudo apt install g++"
# What a program says of it, in lower case -> the next step.
_SIGNS = {
    "no space left on device": "The disk is full. Free some space and run the same command again: it goes on "
    "where it stopped.",
    "killed signal terminated program": "A compiler was killed, most likely because memory ran out. Run it "
    "again with fewer at a time: --jobs 1.",
    "no cmake_c_compiler could be found": _NO_COMPILER.format("C"),
    "no cmake_cxx_compiler could be found": _NO_COMPILER.format("C++"),
    "is not able to compile a simple test program": "The compiler itself does not work: its own lines below "
    "say why.",
    "unsupported gnu version": "This nvcc does not take so new a C++ compiler. Install an older one and name "
    "it, as in: CC=gcc-12 CXX=g++-12 rerankd engine build --backend cuda",
    "unsupported gpu architecture": "This CUDA toolkit does not know that card: take a newer toolkit, or "
    "another --cuda-arch.",
    "could not find vulkan": "There is no Vulkan SDK. Debian and Ubuntu: sudo apt install libvulkan-dev "
    "glslc",
    "could not find cudatoolkit": _NO_CUDA,
    "cuda toolkit not found": _NO_CUDA,
}


def failed(step: str, lines: Sequence[str], log: Path) -> str:
    """The message for a step ("configure" or "compile") whose program said `lines`, the last line last."""
    output = "\n".join(lines).lower()
    advice = next((text for sign, text in _SIGNS.items() if sign in output), "")
    telling = [at for at, line in enumerate(lines) if "error" in line.lower() or "FAILED" in line]
    start = max(telling[0] if telling else len(lines) - _QUOTED_LINES, 0)
    quoted = "\n".join(f"  | {line}" for line in lines[start : start + _QUOTED_LINES])
    return (
        f"llama.cpp could not be built: the step {step!r} failed. {advice}\n{quoted}\n"
        f"The whole log is {log}. The engine in use has not changed."
    )
