"""A tiny source tree that the real cmake builds in seconds like llama.cpp's: its llama-server executes the
bundled llama.cpp."""

from __future__ import annotations

import sys
from pathlib import Path

_CMAKE = """\
cmake_minimum_required(VERSION 3.14)
project(mini C CXX)
option(GGML_NATIVE "" ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(llama-server src/main.cpp src/more.cpp)
target_compile_definitions(llama-server PRIVATE BUILD=${LLAMA_BUILD_NUMBER})
if(GGML_NATIVE)
  target_compile_definitions(llama-server PRIVATE NATIVE)
endif()
"""
_MAIN = """\
#include <csignal>
#include <cstdio>
#include <cstring>
#include <unistd.h>
#include <vector>
int more();
int main(int argc, char **argv) {
    if (argc > 1 && !strcmp(argv[1], "--version")) {
        printf("version: 0.6.0-dev (build %d, commit x)\\n", BUILD + more());
        return 0;
    }
@NATIVE@
    std::vector<char *> words{(char *)"@PYTHON@", (char *)"-m", (char *)"rerankd.backends.llama.bundled"};
    words.insert(words.end(), argv + 1, argv + argc);
    words.push_back(nullptr);
    execv(words[0], words.data());
    return 9;
}
"""


def write(folder: Path, *, native: str = "", more: str = "int more() { return 0; }") -> Path:
    """Write the tree. `native` is C++ code for native builds only, `more` the second source file."""
    for name in ("ggml", "src", "tools/server"):
        (folder / name).mkdir(parents=True)
    (folder / "CMakeLists.txt").write_text(_CMAKE)
    guarded = f"#ifdef NATIVE\n{native}\n#endif" if native else ""
    (folder / "src" / "main.cpp").write_text(
        _MAIN.replace("@PYTHON@", sys.executable).replace("@NATIVE@", guarded)
    )
    (folder / "src" / "more.cpp").write_text(more + "\n")
    for name in ("ggml/CMakeLists.txt", "tools/server/CMakeLists.txt"):
        (folder / name).write_text("")
    return folder
