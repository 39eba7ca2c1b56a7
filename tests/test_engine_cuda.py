"""CUDA builds without a card: compile one kernel if nvcc is installed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from rerankd import machine
from rerankd.backends.llama.build import cuda, plan, run, source, tools
from support import ENGINE_HOME

_ENGINES = ENGINE_HOME / "engines"
_KERNEL = "ggml/src/ggml-cuda/CMakeFiles/ggml-cuda.dir/clamp.cu.o"


def nothing(*_: object) -> None:
    pass


@pytest.mark.timeout(900)
def test_a_kernel_compiles(tmp_path: Path) -> None:
    """Uses the machine's nvcc; missing parts of the toolkit come from the package index (500 MB, once)."""
    found = tools.find(os.environ)
    toolkit = cuda.find(os.environ)
    if toolkit is None:
        pytest.skip("there is no nvcc on this machine")
    if not (found.cmake and found.ninja):
        pytest.skip("there is no cmake or no ninja on this machine")
    if toolkit.release[0] < 13 and cuda.lacks(toolkit):
        pytest.skip(f"{toolkit.name} here lacks {cuda.lacks(toolkit)}, and no wheels have that")
    tree = source.get(None, _ENGINES / ".source", found, nothing)
    if cuda.lacks(toolkit):
        toolkit = cuda.complete(toolkit, _ENGINES / ".toolkit", nothing)
    made = plan.make(tree, "cuda", found, machine.instructions(), toolkit=toolkit, architectures="89")
    code, lines = run.run(made.configure(tmp_path / "b"), tmp_path / "log")
    assert code == 0, "\n".join(lines[-20:])
    assert "Including CUDA backend" in "\n".join(lines)
    code, lines = run.run([found.ninja, "-C", str(tmp_path / "b"), _KERNEL], tmp_path / "log")
    assert code == 0, "\n".join(lines[-20:])
    assert b".nv_fatbin" in (tmp_path / "b" / _KERNEL).read_bytes()
    shutil.rmtree(tmp_path / "b")
