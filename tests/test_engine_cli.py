"""`rerankd engine …` as a user runs it, with the real cmake and compiler on a small source tree.

Every failure ends with a message, and leaves the engine in use unchanged.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import built
import mini_tree
from rerankd.backends.llama import installed
from rerankd.backends.llama.build import builder, plan
from rerankd.backends.llama.options import LlamaOptions
from rerankd.errors import BuildFailed, DataFolderError
from support import GOLDEN, environment, rerankd, wait_until_gone

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and shutil.which("c++")), reason="there is no cmake or no C++ compiler here"
)


def build(tree: Path, home: Path, *more: str, **env: str) -> subprocess.CompletedProcess[str]:
    return rerankd("engine", "build", "--source", str(tree), "--backend", "cpu", *more, home=home, **env)


def engines(home: Path) -> list[str]:
    return [one.name for one in installed.Engines(home).all()]


def left_over(home: Path) -> list[str]:
    """List everything in the engines folder except engines, sources and the lock."""
    known = {".lock", ".build", ".source", *engines(home)}
    return [path.name for path in (home / "engines").iterdir() if path.name not in known]


def test_an_engine_is_built_tested_used_and_removed(tmp_path: Path) -> None:
    tree = mini_tree.write(tmp_path / "llama.cpp-b4000")
    made = build(tree, tmp_path)
    assert made.returncode == 0, made.stderr
    (name,) = engines(tmp_path)
    assert name.startswith("b4000-cpu-")
    assert "passed: " in made.stderr
    assert f"uses this llama.cpp: {name}" in made.stderr
    assert left_over(tmp_path) == []
    assert list((tmp_path / "engines" / ".build").iterdir()) == []
    folder = tmp_path / "engines" / name
    assert sorted(path.name for path in folder.iterdir()) == ["build.log", "llama-server", "manifest.json"]
    assert " llama-server\n" in (folder / "build.log").read_text()

    again = build(tree, tmp_path)
    assert "already exists" in again.stderr
    assert rerankd("engine", "path", home=tmp_path).stdout.strip() == str(folder / "llama-server")
    rows = json.loads(rerankd("engine", "list", "--json", home=tmp_path).stdout)
    assert [(row["name"], row["used"]) for row in rows] == [
        ("openvino", True), ("onnx", False), (name, True), ("bundled", False)
    ]  # fmt: skip

    scored = rerankd(
        "rerank", "q", "--model", str(GOLDEN / "xlmr-head.gguf"), "--json", home=tmp_path, stdin="a\nb\n"
    )
    assert scored.returncode == 0, scored.stderr
    bundled = rerankd("engine", "use", "bundled", home=tmp_path)
    assert "uses this llama.cpp: bundled (chosen with rerankd engine use" in bundled.stderr
    assert "bundled" in rerankd("engine", "path", home=tmp_path).stdout
    assert rerankd("engine", "use", "b4", home=tmp_path).returncode == 0
    gone = rerankd("engine", "remove", name, home=tmp_path)
    assert (gone.returncode, engines(tmp_path)) == (0, [])
    assert "uses this llama.cpp: bundled" in gone.stderr
    unknown = rerankd("engine", "use", "b9", home=tmp_path)
    assert (unknown.returncode, "The engines are: bundled" in unknown.stderr) == (4, True)


def test_a_build_that_crashes_in_its_test_is_rebuilt_without_amx(tmp_path: Path) -> None:
    # Like broken AMX kernels: it answers health polls and crashes when it computes.
    dies = 'if (argc > 2) { fputs("tile\\n", stderr); raise(SIGILL); }'
    made = build(mini_tree.write(tmp_path / "tree", native=dies), tmp_path)
    assert made.returncode == 0, made.stderr
    assert "terminated by SIGILL" in made.stderr
    assert "Building again without AMX" in made.stderr
    (one,) = installed.Engines(tmp_path).all()
    assert "-DGGML_NATIVE=OFF" in one.manifest.flags
    assert "without AMX" in one.manifest.notes[0]
    assert left_over(tmp_path) == []
    # The second command finds the careful build and does not crash again.
    assert "already exists" in build(tmp_path / "tree", tmp_path).stderr


def test_a_build_that_fails_its_test_is_not_published(tmp_path: Path) -> None:
    home = with_an_engine(tmp_path)
    before = engines(home)
    ends = "if (argc > 2) return 5;"
    failed = build(mini_tree.write(tmp_path / "tree", native=ends), home)
    assert failed.returncode == 4
    assert "fails its smoke test: it exited with code 5" in failed.stderr
    assert (engines(home), left_over(home)) == (before, [])


def test_a_source_that_does_not_compile_is_reported(tmp_path: Path) -> None:
    home = with_an_engine(tmp_path)
    before = engines(home)
    failed = build(mini_tree.write(tmp_path / "tree", more="int more() { return x; }"), home)
    assert failed.returncode == 4
    assert "the step 'compile' failed" in failed.stderr
    assert "'x' was not declared" in failed.stderr
    assert "build.log" in failed.stderr
    assert "Traceback" not in failed.stderr
    assert (engines(home), left_over(home)) == (before, [])
    assert installed.chosen(LlamaOptions(), home).name == before[0]


def test_a_source_that_cmake_rejects(tmp_path: Path) -> None:
    tree = mini_tree.write(tmp_path / "tree")
    (tree / "CMakeLists.txt").write_text("project(x)\nno_such_command()\n")
    failed = build(tree, tmp_path)
    assert failed.returncode == 4
    assert "the step 'configure' failed" in failed.stderr
    assert "no_such_command" in failed.stderr


@pytest.mark.parametrize(
    ("lacks", "says"), [("c++", "C++ compiler is missing"), ("cmake", "cmake is missing")]
)
def test_missing_tools_are_named_with_the_install_command(tmp_path: Path, lacks: str, says: str) -> None:
    home = with_an_engine(tmp_path)
    before = engines(home)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cmake", "ninja", "make", "cc", "c++", "sh"):
        if name != lacks and (found := shutil.which(name)):
            (programs / name).symlink_to(found)
    failed = build(mini_tree.write(tmp_path / "tree"), home, PATH=str(programs))
    assert failed.returncode == 4
    assert says in failed.stderr
    assert "sudo apt install" in failed.stderr
    assert (engines(home), left_over(home)) == (before, [])


def test_make_is_used_without_ninja(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cmake", "make", "cc", "c++", "sh", "as", "ld", "ar", "ranlib"):
        if found := shutil.which(name):
            (programs / name).symlink_to(found)
    made = build(mini_tree.write(tmp_path / "tree"), tmp_path, PATH=str(programs))
    assert made.returncode == 0, made.stderr
    assert engines(tmp_path)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    home = tmp_path / "small"
    home.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(home)], check=False)
    if mounted.returncode:
        pytest.skip("this container may not mount a small disk")
    yield home
    subprocess.run(["umount", str(home)], check=True)


def test_a_full_disk_is_reported_before_and_during_the_build(
    small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = mini_tree.write(tmp_path / "tree")
    failed = build(tree, small_disk)
    assert failed.returncode == 7
    assert "A build needs about 1 GiB" in failed.stderr
    assert "The engine in use has not changed" in failed.stderr
    # The disk can also fill up during the build, at any step.
    monkeypatch.setitem(plan.DISK_BYTES, "cpu", 0)
    made = builder.Builder(small_disk, report=lambda *_: None, say=lambda _: None, environ=os.environ)
    with pytest.raises((BuildFailed, DataFolderError), match="some space"):
        made.build(builder.Request(source=str(tree), backend="cpu"))
    assert (engines(small_disk), left_over(small_disk)) == ([], [])


def test_a_full_disk_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = builder.Builder(tmp_path, report=lambda *_: None, say=lambda _: None, environ=os.environ)
    tree = str(mini_tree.write(tmp_path / "tree"))
    monkeypatch.setitem(plan.DISK_BYTES, "cpu", 2**60)
    with pytest.raises(DataFolderError, match="name another folder with RERANKD_HOME"):
        made.build(builder.Request(source=tree, backend="cpu"))
    full = "#error No space left on device"
    monkeypatch.setitem(plan.DISK_BYTES, "cpu", 0)
    (tmp_path / "tree" / "src" / "more.cpp").write_text(full)
    with pytest.raises(BuildFailed, match="resumes where it stopped"):
        made.build(builder.Request(source=tree, backend="cpu"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_resumes(tmp_path: Path, number: signal.Signals) -> None:
    """The compiler of the first build never ends; the second build reuses the finished files of the first."""
    tree = mini_tree.write(tmp_path / "tree")
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    # The compiler reads a pipe without a writer.
    (tree / "src" / "more.cpp").write_text(f'#include "{gate}"\nint more() {{ return 0; }}\n')
    command = [sys.executable, "-m", "rerankd", "engine", "build", "--source", str(tree), "--backend", "cpu"]
    started = subprocess.Popen(
        [*command, "-j", "1"], env=environment(tmp_path), stderr=subprocess.PIPE, text=True
    )
    assert started.stderr is not None
    with started.stderr as said:
        assert any("Building " in line for line in said)
        with gate.open("w"):  # open() returns once the compiler reads
            group = compilers(started.pid)
            assert group
            started.send_signal(number)
            assert started.wait(30) in (130, -signal.SIGKILL)
            wait_until_gone(group[:1])  # ninja; a running compiler ends with its file
    wait_until_gone(group)
    assert engines(tmp_path) == []
    (folder,) = (tmp_path / "engines" / ".build").iterdir()
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("main.cpp.o")}
    gate.unlink()
    gate.write_text("")
    made = build(tree, tmp_path)
    assert made.returncode == 0, made.stderr
    assert len(engines(tmp_path)) == 1
    log = (tmp_path / "engines" / engines(tmp_path)[0] / "build.log").read_text()
    # Compiled once, by the first build if it got that far.
    assert log.count("main.cpp.o") >= len(kept)
    if kept:
        assert log.count("Building CXX object CMakeFiles/llama-server.dir/src/main.cpp.o") == 1


def test_a_second_concurrent_build_is_rejected(tmp_path: Path) -> None:
    made = builder.Builder(tmp_path, report=lambda *_: None, say=lambda _: None, environ=os.environ)
    with made._alone():
        failed = build(mini_tree.write(tmp_path / "tree"), tmp_path)
    assert failed.returncode == 4
    assert "Another build is running" in failed.stderr


def with_an_engine(folder: Path) -> Path:
    """Create a data folder with an engine in use."""
    built.put(folder / "home", 4000, instructions=())
    return folder / "home"


def compilers(pid: int) -> list[int]:
    """Return the pids of all descendants of a process."""
    found = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return found + [below for child in found for below in compilers(child)]
