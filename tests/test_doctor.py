"""What doctor makes of machines it has never seen, and what it says of this one."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerankd.backends.llama.binaries import Binary
from rerankd.backends.llama.build.cuda import Toolkit
from rerankd.backends.llama.build.smoke import Outcome
from rerankd.backends.llama.build.tools import Tools
from rerankd.doctor import apt, checks
from rerankd.doctor.checks import Row, diagnose
from rerankd.doctor.seen import Seen, SeenEngine, SeenModel
from rerankd.machine import Gpu, Machine
from support import GOLDEN, ROOT, Program, rerankd

GIB = 2**30
CARD = Gpu("RTX 4090", 24 * GIB, 23 * GIB, "8.9", "570.133.07")
UBUNTU = {"ID": "ubuntu", "VERSION_ID": "24.04"}
PASSED = Outcome(True, "passed")
TOOLS = Tools(
    "/usr/bin/cmake", "3.28.1", "/usr/bin/ninja", "/usr/bin/make", "/usr/bin/cc", "/usr/bin/c++", "GNU"
)
CUDA = Toolkit(
    Path("/usr/local/cuda/bin/nvcc"),
    Path("/usr/local/cuda"),
    (12, 8),
    Path("/usr/local/cuda/lib64/libcudart.so"),
    Path("/usr/local/cuda/lib64/libcublas.so"),
)
BUNDLED = Binary("bundled", ("python",), "no other was built", 11549)
NATIVE = Binary("b11434-cpu-0", ("/e",), "it is made for this machine", 11434)
ON_CARD = Binary("b11434-cuda-0", ("/e",), "it is made for this machine", 11434, (CARD,))
VM = Seen(
    machine=Machine(2, 8 * GIB),
    cpu="a CPU",
    instructions=("avx", "avx2", "fma"),
    architecture="x86_64",
    release=UBUNTU,
    nvidia_card=False,
    nvidia_smi=False,
    toolkit=None,
    tools=TOOLS,
    home=Path("/home/u/.local/share/rerankd"),
    home_problem="",
    free_bytes=50 * GIB,
    address="127.0.0.1:11440",
    port_problem="",
    engines=(SeenEngine("bundled", 11549, outcome=PASSED),),
    choice=BUNDLED,
    choice_problem="",
    models=(SeenModel("builtin:e5", 78 * 10**6, True, "scored as cosine", True),),
)
GPU_BOX = replace(
    VM, machine=Machine(8, 64 * GIB, (CARD,)), nvidia_card=True, nvidia_smi=True, toolkit=CUDA, choice=ON_CARD
)


def with_card(seen: Seen, **more: Any) -> Seen:
    return replace(seen, machine=replace(seen.machine, gpus=(replace(CARD, **more),)))


def row(seen: Seen, check: str, mirror: str | None = None) -> Row:
    return next(row for row in diagnose(seen, mirror) if row.check == check)


@pytest.mark.parametrize("seen", [VM, GPU_BOX, replace(VM, models=()), replace(VM, instructions=())])
def test_a_sound_machine_has_nothing_to_mend(seen: Seen) -> None:
    rows = diagnose(seen)
    assert [row.check for row in rows if row.verdict != "ok"] == []
    assert checks.can_run(rows)


# What is wrong with a machine, and what is said of it. Only what keeps it from serving is a failure.
@pytest.mark.parametrize(
    ("seen", "check", "verdict", "says", "step"),
    [
        (replace(VM, instructions=("avx2", "avx512f")), "instructions", "warn", "avx512f", "engine build"),
        (replace(VM, instructions=("avx",)), "instructions", "fail", "no AVX2", "engine build"),
        (replace(VM, instructions=("avx",), choice=NATIVE), "instructions", "ok", "no AVX2", ""),
        (replace(VM, machine=Machine(1, GIB // 2)), "memory", "warn", "0.5 GiB", "less than 500 MB"),
        (replace(VM, nvidia_card=True), "gpu", "warn", "driver is not installed", "ubuntu-drivers"),
        (replace(VM, nvidia_card=True, nvidia_smi=True), "gpu", "warn", "finds none", "restart"),
        (replace(GPU_BOX, choice=BUNDLED), "gpu", "warn", "not used", "rerankd engine build --backend cuda"),
        (replace(GPU_BOX, toolkit=None), "cuda", "warn", "no nvcc", "cuda-toolkit-12-8"),
        (replace(GPU_BOX, toolkit=replace(CUDA, cublas=None)), "cuda", "warn", "lacks cuBLAS", "apt-get"),
        (with_card(GPU_BOX, driver="470.1"), "cuda", "warn", "do not fit together", "update the driver"),
        (with_card(GPU_BOX, compute_capability="6.1"), "cuda", "ok", "fits", ""),
        (
            replace(with_card(GPU_BOX, compute_capability="6.1"), toolkit=replace(CUDA, release=(13, 0))),
            "cuda",
            "warn",
            "do not fit",
            "driver",
        ),
        (
            replace(with_card(GPU_BOX, compute_capability="12.0"), toolkit=replace(CUDA, release=(12, 4))),
            "cuda",
            "warn",
            "does not compile for compute 12.0",
            "--cuda-home",
        ),
        (replace(VM, tools=Tools()), "build tools", "warn", "can't be built", "apt install cmake"),
        (replace(VM, tools=Tools(), choice=NATIVE), "build tools", "ok", "can't be built", "g++"),
        (replace(VM, home_problem="No room."), "disk", "fail", "No room", "RERANKD_HOME"),
        (replace(VM, free_bytes=GIB // 2), "disk", "warn", "0.5 GiB free", "make room"),
        (replace(VM, port_problem="Port 1 on h is in use. Stop it."), "port", "fail", "in use", "--port"),
        (replace(VM, port_problem="Port 1 is in use.", serves=("a", "b")), "port", "ok", "serves a, b", ""),
        (
            replace(VM, engines=(SeenEngine("bundled", 1, outcome=Outcome(False, "it died", signal=4)),)),
            "engine bundled",
            "fail",
            "it died",
            "rerankd engine build",
        ),
        (
            replace(VM, engines=(SeenEngine("b1-cpu-0", 1, outcome=Outcome(False, "it died")),)),
            "engine b1-cpu-0",
            "warn",
            "it died",
            "",
        ),
        (
            replace(VM, engines=(SeenEngine("b1-cpu-0", 1, runs_here=False),)),
            "engine b1-cpu-0",
            "warn",
            "another CPU",
            "engine remove",
        ),
        (replace(VM, choice=None, choice_problem="It is gone."), "engine", "fail", "gone", "engine list"),
        (VM, "openvino", "ok", "not installed", "rerankd[openvino]"),
        (replace(VM, openvino="2026.4"), "openvino", "ok", "2026.4", ""),
        (replace(VM, models=()), "model", "ok", "none here yet", "rerankd pull"),
        (replace(VM, model_problem="There is no x."), "model", "fail", "no x", "rerankd list"),
        (
            replace(VM, models=(SeenModel("m", 1, False, "it has no head", True),)),
            "model m",
            "fail",
            "no head",
            "rerankd show m",
        ),
        (replace(VM, models=(SeenModel("m", 1, False, "no head"),)), "model m", "warn", "no head", "show"),
        (
            replace(VM, models=(SeenModel("m", 9 * GIB, True, "scored", True),)),
            "model m",
            "fail",
            "more than there is memory",
            "smaller",
        ),
        (
            replace(GPU_BOX, machine=replace(GPU_BOX.machine, memory_bytes=GIB * 4), models=(
                SeenModel("m", 9 * GIB, True, "scored", True),
            )),
            "model m",
            "ok",
            "scored",
            "",
        ),
        (replace(VM, online={"a hub": "no route"}), "a hub", "warn", "no route", "HTTPS_PROXY"),
        (replace(VM, online={"a hub": ""}), "a hub", "ok", "can be reached", ""),
    ],
)  # fmt: skip
def test_verdicts(seen: Seen, check: str, verdict: str, says: str, step: str) -> None:
    found = row(seen, check)
    assert (found.verdict, says in found.says, step in found.step) == (verdict, True, True), found
    assert bool(found.step) == bool(step)
    assert checks.can_run(diagnose(seen)) == (verdict != "fail")


def test_the_commands_for_cuda_are_those_of_the_release() -> None:
    step = row(replace(GPU_BOX, toolkit=None), "cuda").step.splitlines()
    assert step[0].endswith("/repos/ubuntu2404/x86_64/cuda-keyring_1.1-1_all.deb")
    assert step[1:4] == [
        "sudo dpkg -i cuda-keyring_1.1-1_all.deb",
        "sudo apt-get update",
        "sudo apt-get install -y cuda-toolkit-12-8",
    ]
    assert step[4] == "rerankd engine build --backend cuda"
    # Driver 570 is too old for the wheels, which are of CUDA 13.
    assert not any("wheels" in line for line in step)
    newer = with_card(replace(GPU_BOX, toolkit=None), driver="580.1")
    assert "--cuda-toolkit wheels" in row(newer, "cuda").step


@pytest.mark.parametrize(
    ("release", "machine", "folder"),
    [
        ({"ID": "ubuntu", "VERSION_ID": "22.04"}, "x86_64", "ubuntu2204/x86_64"),
        ({"ID": "debian", "VERSION_ID": "12"}, "x86_64", "debian12/x86_64"),
        ({"ID": "ubuntu", "VERSION_ID": "24.04"}, "aarch64", "ubuntu2404/sbsa"),
        ({"ID": "ubuntu", "VERSION_ID": "25.10"}, "x86_64", None),
        ({"ID": "arch"}, "x86_64", None),
        ({}, "riscv64", None),
    ],
)
def test_apt(release: dict[str, str], machine: str, folder: str | None) -> None:
    found = apt.commands(release, machine)
    assert (f"/{folder}/" in found[0]) if folder else not found
    mirrored = apt.commands(release, machine, "https://mirror.example/cuda/")
    if folder:
        assert f"https://mirror.example/cuda/{folder}/3bf863cc.pub" in mirrored[0]
        assert "signed-by=" in mirrored[1]
        assert mirrored[-1] == found[-1]
    else:
        assert not mirrored


def test_this_machine(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = rerankd(
            "doctor", "--json", home=home, RERANKD_PORT=port, LLAMA_RANK_GGUF=str(GOLDEN / "xlmr-head.gguf")
        )
    told = json.loads(ended.stdout)
    rows = {row["check"]: row for row in told["checks"]}
    assert rows["engine bundled"]["verdict"] == "ok"
    assert "smoke test passed" in rows["engine bundled"]["says"]
    assert rows["model builtin:e5"]["verdict"] == "ok"
    assert any(check.endswith("xlmr-head.gguf") for check in rows)
    # The one thing that is wrong here.
    assert [row["check"] for row in told["checks"] if row["verdict"] == "fail"] == ["port"]
    assert (told["ok"], ended.returncode) == (False, 1)
    assert not any("reached" in row["says"] for row in told["checks"])


def test_people_get_a_line_for_each_check(home: Path) -> None:
    ended = rerankd("doctor", home=home, RERANKD_PORT="0")
    assert ended.returncode == 0, ended.stdout
    assert "rerankd can serve a model here" in ended.stderr
    assert any(line.startswith("ok    engine bundled") for line in ended.stdout.splitlines())


def test_its_own_running_server_is_no_fault(serve: Callable[..., Program]) -> None:
    program = serve(str(GOLDEN / "xlmr-head.gguf"))
    port = program.url.rpartition(":")[2]
    ended = rerankd("doctor", "--json", home=ROOT / ".test-home", RERANKD_PORT=port)
    row = next(row for row in json.loads(ended.stdout)["checks"] if row["check"] == "port")
    assert (row["verdict"], "serves xlmr-head" in row["says"]) == ("ok", True), row
    assert ended.returncode == 0, ended.stdout
