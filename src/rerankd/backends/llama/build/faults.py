"""(pure) Explain a failed build: the cause, the compiler's own lines, the next step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_QUOTED_LINES = 12
_NO_CUDA = "CUDA's headers and libraries are missing. rerankd doctor shows how to install them."
_NO_COMPILER = "The {} compiler is missing. Debian and Ubuntu: sudo apt install g++"
# A phrase in the build's output, in lower case -> the next step.
_SIGNS = {
    "no space left on device": "The disk is full. Free some space and run the same command again; it resumes "
    "where it stopped.",
    "killed signal terminated program": "A compiler was killed, most likely because memory ran out. Run the "
    "build again with fewer parallel jobs: --jobs 1.",
    "no cmake_c_compiler could be found": _NO_COMPILER.format("C"),
    "no cmake_cxx_compiler could be found": _NO_COMPILER.format("C++"),
    "is not able to compile a simple test program": "The compiler itself does not work. Its output below "
    "shows why.",
    "unsupported gnu version": "This nvcc does not support such a new C++ compiler. Install an older one and "
    "use it: CC=gcc-12 CXX=g++-12 rerankd engine build --backend cuda",
    "unsupported gpu architecture": "This CUDA toolkit does not support that card. Use a newer toolkit or "
    "another --cuda-arch.",
    "could not find vulkan": "The Vulkan SDK is missing. Debian and Ubuntu: sudo apt install libvulkan-dev "
    "glslc",
    "could not find cudatoolkit": _NO_CUDA,
    "cuda toolkit not found": _NO_CUDA,
}


def failed(step: str, lines: Sequence[str], log: Path) -> str:
    """Return the error message for a failed step ("configure" or "compile") with the output `lines`."""
    output = "\n".join(lines).lower()
    advice = next((text for sign, text in _SIGNS.items() if sign in output), "")
    telling = [at for at, line in enumerate(lines) if "error" in line.lower() or "FAILED" in line]
    start = max(telling[0] if telling else len(lines) - _QUOTED_LINES, 0)
    quoted = "\n".join(f"  | {line}" for line in lines[start : start + _QUOTED_LINES])
    return (
        f"llama.cpp could not be built: the step {step!r} failed. {advice}\n{quoted}\n"
        f"The full log is {log}. The engine in use has not changed."
    )
