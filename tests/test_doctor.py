"""`rerankd doctor`: its checks of many kinds of machines, and its output on this one."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerankd.backends.base import Check
from rerankd.backends.llama import checks as llama
from rerankd.backends.llama.binaries import Binary
from rerankd.backends.llama.build import apt
from rerankd.backends.llama.build.cuda import Toolkit
from rerankd.backends.llama.build.smoke import Outcome
from rerankd.backends.llama.build.tools import Tools
from rerankd.backends.llama.checks import SeenEngine
from rerankd.backends.openvino import checks as openvino
from rerankd.backends.openvino.precision import Choice
from rerankd.doctor import checks
from rerankd.doctor.observations import Seen, SeenModel, SeenUpstream
from rerankd.machine import Gpu, Machine
from support import GOLDEN, ROOT, Program, environment, rerankd

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
BUNDLED = Binary("bundled", ("python",), "no other engine is installed", 11549)
NATIVE = Binary("b11434-cpu-0", ("/e",), "it was built for this machine", 11434)
ON_CARD = Binary("b11434-cuda-0", ("/e",), "it was built for this machine", 11434, (CARD,))
VM = Seen(
    machine=Machine(2, 8 * GIB),
    cpu="a CPU",
    usable_cards=(),
    nvidia_card=False,
    nvidia_smi=False,
    home=Path("/home/u/.local/share/rerankd"),
    home_problem="",
    free_bytes=50 * GIB,
    address="127.0.0.1:11440",
    port_problem="",
    models=(SeenModel("builtin:e5", 78 * 10**6, True, "scored as cosine", True),),
)
GPU_BOX = replace(
    VM, machine=Machine(8, 64 * GIB, (CARD,)), usable_cards=(CARD,), nvidia_card=True, nvidia_smi=True
)
UP = SeenUpstream("gpu1", "http://gpu1", ("a", "b"), "")
DOWN = SeenUpstream("gpu2", "http://gpu2", (), "no route")
CPU = llama.Seen(
    instructions=("avx", "avx2", "fma"),
    architecture="x86_64",
    release=UBUNTU,
    gpus=(),
    toolkit=None,
    tools=TOOLS,
    engines=(SeenEngine("bundled", 11549, PASSED),),
    choice=BUNDLED,
)
GPU = replace(CPU, gpus=(CARD,), toolkit=CUDA, choice=ON_CARD)


def with_card(seen: llama.Seen, **more: Any) -> llama.Seen:
    return replace(seen, gpus=(replace(CARD, **more),))


def diagnose(seen: Seen | llama.Seen) -> list[Check]:
    return checks.diagnose(seen) if isinstance(seen, Seen) else llama.diagnose(seen)


def row(seen: Seen | llama.Seen, check: str) -> Check:
    return next(row for row in diagnose(seen) if row.check == check)


@pytest.mark.parametrize(
    "seen",
    [VM, GPU_BOX, replace(VM, models=()), CPU, GPU, replace(CPU, instructions=())],
)
def test_a_complete_machine_has_no_warnings(seen: Seen | llama.Seen) -> None:
    rows = diagnose(seen)
    assert [row.check for row in rows if row.status != "ok"] == []
    assert checks.can_run(rows)


# Faults of machines and the line that reports them. Only faults that prevent serving have status fail.
@pytest.mark.parametrize(
    ("seen", "check", "status", "says", "step"),
    [
        (replace(CPU, instructions=("avx2", "avx512f")), "instructions", "warn", "avx512f", "engine build"),
        (replace(CPU, instructions=("avx",)), "instructions", "fail", "needs AVX2", "engine build"),
        (replace(CPU, instructions=("avx",), choice=NATIVE), "instructions", "ok", "needs AVX2", ""),
        (replace(VM, machine=Machine(1, GIB // 2)), "memory", "warn", "0.5 GiB", "less than 500 MB"),
        (replace(VM, nvidia_card=True), "gpu", "warn", "driver is not installed", "ubuntu-drivers"),
        (replace(VM, nvidia_card=True, nvidia_smi=True), "gpu", "warn", "does not find it", "restart"),
        (replace(GPU_BOX, usable_cards=()), "gpu", "warn", "does not use it", ""),
        (replace(GPU, choice=BUNDLED), "cuda", "ok", "supports", "rerankd engine build --backend cuda"),
        (replace(GPU, choice=BUNDLED, tools=Tools()), "cuda", "ok", "supports", ""),
        (replace(GPU, toolkit=None), "cuda", "warn", "nvcc is missing", "cuda-toolkit-12-8"),
        (replace(GPU, toolkit=replace(CUDA, cublas=None)), "cuda", "warn", "lacks cuBLAS", "apt-get"),
        (with_card(GPU, driver="470.1"), "cuda", "warn", "needs driver", "update the driver"),
        (with_card(GPU, compute_capability="6.1"), "cuda", "ok", "supports", ""),
        (
            replace(with_card(GPU, compute_capability="6.1"), toolkit=replace(CUDA, release=(13, 0))),
            "cuda",
            "warn",
            "needs driver 580",
            "driver",
        ),
        (
            replace(with_card(GPU, compute_capability="12.0"), toolkit=replace(CUDA, release=(12, 4))),
            "cuda",
            "warn",
            "does not compile for compute 12.0",
            "--cuda-home",
        ),
        (replace(CPU, tools=Tools()), "build tools", "warn", "can't be built", "apt install cmake"),
        (replace(CPU, tools=Tools(), choice=NATIVE), "build tools", "ok", "can't be built", "g++"),
        (replace(VM, home_problem="No room."), "disk", "fail", "No room", "RERANKD_HOME"),
        (replace(VM, free_bytes=GIB // 2), "disk", "warn", "0.5 GiB free", "free disk space"),
        (replace(VM, port_problem="Port 1 on h is in use. Stop it."), "port", "fail", "in use", "--port"),
        (replace(VM, port_problem="Port 1 is in use.", serves=("a", "b")), "port", "ok", "serves a, b", ""),
        (
            replace(CPU, engines=(SeenEngine("bundled", 1, Outcome(False, "it died", signal=4)),)),
            "engine bundled",
            "fail",
            "it died",
            "rerankd engine build",
        ),
        (
            replace(CPU, engines=(SeenEngine("b1-cpu-0", 1, Outcome(False, "it died")),)),
            "engine b1-cpu-0",
            "warn",
            "it died",
            "",
        ),
        (
            replace(CPU, engines=(SeenEngine("b1-cpu-0", 1, None),)),
            "engine b1-cpu-0",
            "warn",
            "another CPU",
            "engine remove",
        ),
        (replace(CPU, choice=None, choice_problem="It is gone."), "engine", "fail", "gone", "engine list"),
        (replace(VM, models=()), "model", "ok", "no model yet", "rerankd pull"),
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
            "more than the machine's memory",
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
        (replace(CPU, sources="no route"), "package index", "warn", "no route", "HTTPS_PROXY"),
        (replace(CPU, sources=""), "package index", "ok", "can be reached", ""),
        (replace(VM, upstreams=(UP, DOWN)), "upstream gpu1", "ok", "serves a, b", ""),
        (replace(VM, upstreams=(DOWN,)), "upstream gpu2", "warn", "no route", "[upstreams.gpu2]"),
        (replace(VM, models=(), upstreams=(DOWN,)), "upstream gpu2", "fail", "no route", "http://gpu2"),
        (replace(VM, models=(), upstreams=(UP, DOWN)), "upstream gpu2", "warn", "no route", "http://gpu2"),
        (replace(VM, online={"a hub": "no route"}), "a hub", "warn", "no route", "HTTPS_PROXY"),
        (replace(VM, online={"a hub": ""}), "a hub", "ok", "can be reached", ""),
    ],
)  # fmt: skip
def test_each_fault_is_reported_with_its_next_step(
    seen: Seen | llama.Seen, check: str, status: str, says: str, step: str
) -> None:
    found = row(seen, check)
    assert (found.status, says in found.says, step in found.step) == (status, True, True), found
    assert bool(found.step) == bool(step)
    assert checks.can_run(diagnose(seen)) == (status != "fail")


def test_the_checks_of_the_backends_are_included() -> None:
    bad, known = Check("engine", "fail", "It is gone."), Check("precision m", "ok", "f32")
    rows = checks.diagnose(replace(VM, backends=(bad,), engines=(known,)))
    assert [row for row in rows if row in (bad, known)] == [bad, known]
    assert not checks.can_run(rows)


@pytest.mark.parametrize(
    ("found", "says", "step"),
    [
        (openvino.package(""), "not installed", "rerankd[openvino]"),
        (openvino.package("2026.4"), "2026.4", ""),
        (openvino.precision("m", None), "not chosen yet", ""),
        (openvino.precision("m", Choice("bf16", "it is faster")), "bf16: it is faster", ""),
        (openvino.precision("m", Choice("f32", "no"), Choice("f32", "busy")), "unchanged: f32: no", ""),
        (
            openvino.precision("m", Choice("f32", "no"), Choice("bf16", "yes")),
            "f32, before bf16: no",
            "rerankd reload m",
        ),
    ],
)
def test_checks_of_openvino(found: Check, says: str, step: str) -> None:
    assert found.status == "ok"
    assert (says in found.says, step in found.step, bool(found.step)) == (True, True, bool(step)), found


def test_the_commands_that_install_cuda_match_the_linux_release() -> None:
    step = row(replace(GPU, toolkit=None), "cuda").step.splitlines()
    assert step[0].endswith("/repos/ubuntu2404/x86_64/cuda-keyring_1.1-1_all.deb")
    assert step[1:4] == [
        "sudo dpkg -i cuda-keyring_1.1-1_all.deb",
        "sudo apt-get update",
        "sudo apt-get install -y cuda-toolkit-12-8",
    ]
    assert step[4] == "rerankd engine build --backend cuda"
    # Driver 570 is too old for the wheels, which are of CUDA 13.
    assert not any("wheels" in line for line in step)
    newer = with_card(replace(GPU, toolkit=None), driver="580.1")
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
def test_apt_repository_of_each_release(release: dict[str, str], machine: str, folder: str | None) -> None:
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
    report = json.loads(ended.stdout)
    rows = {row["check"]: row for row in report["checks"]}
    assert rows["engine bundled"]["status"] == "ok"
    assert "smoke test passed" in rows["engine bundled"]["says"]
    assert rows["model builtin:e5"]["status"] == "ok"
    assert any(check.endswith("xlmr-head.gguf") for check in rows)
    # The only fault on this machine.
    assert [row["check"] for row in report["checks"] if row["status"] == "fail"] == ["port"]
    assert all(row["verdict"] == row["status"] for row in report["checks"])  # the name in 0.1
    assert (report["ok"], ended.returncode) == (False, 1)
    assert not any("reached" in row["says"] for row in report["checks"])


# A backend that only this test adds, first in the table.
_ANOTHER = """
from rerankd.__main__ import main
from rerankd.backends.base import Check
from rerankd.backends.openvino.backend import OpenVinoBackend
from rerankd.backends.openvino.options import OpenVinoOptions
from rerankd.backends.options import Options
from rerankd.backends.table import BACKENDS

class NoOptions(Options):
    pass

class Another(OpenVinoBackend):
    name = "another"
    Options = NoOptions

    def offer(self, spec, options, survey):
        return super().offer(spec, OpenVinoOptions(), survey)

    def checks(self, options, home, checkup):
        return [Check("another", "warn", f"{checkup.online} {checkup.cuda_mirror}")]

    async def model_checks(self, offer, learned, log, timeout_s, checkup):
        return [Check(f"another {offer.spec.name}", "warn", f"{checkup.again}")]

BACKENDS.insert(0, Another())
main()
"""


def test_a_new_row_in_the_backend_table_adds_its_checks(home: Path) -> None:
    model = str(GOLDEN / "xlmr-head.gguf")
    ended = subprocess.run(
        [sys.executable, "-c", _ANOTHER, "doctor", "--json", "--remeasure", "--cuda-mirror", "here"],
        env=environment(home, RERANKD_PORT="0", LLAMA_RANK_GGUF=model),
        capture_output=True,
        text=True,
        check=True,
    )
    found = [(row["check"], row["says"]) for row in json.loads(ended.stdout)["checks"]]
    assert [one for one in found if "another" in one[0]] == [
        ("another", "False here"),
        ("another xlmr-head", "True"),
    ]
    assert "openvino" in dict(found) and "engine bundled" in dict(found)


def test_the_text_output_has_a_line_for_each_check(home: Path) -> None:
    ended = rerankd("doctor", home=home, RERANKD_PORT="0")
    assert ended.returncode == 0, ended.stdout
    assert "rerankd can serve a model here" in ended.stderr
    assert any(line.startswith("ok    engine bundled") for line in ended.stdout.splitlines())


def test_a_running_rerankd_at_the_port_is_no_fault(serve: Callable[..., Program]) -> None:
    program = serve(str(GOLDEN / "xlmr-head.gguf"))
    port = program.url.rpartition(":")[2]
    ended = rerankd("doctor", "--json", home=ROOT / ".test-home", RERANKD_PORT=port)
    row = next(row for row in json.loads(ended.stdout)["checks"] if row["check"] == "port")
    assert (row["status"], "serves xlmr-head" in row["says"]) == ("ok", True), row
    assert ended.returncode == 0, ended.stdout


def test_each_upstream_server_is_asked_with_its_key(serve: Callable[..., Program], tmp_path: Path) -> None:
    program = serve(str(GOLDEN / "xlmr-head.gguf"), RERANKD_API_KEY="right")
    file = tmp_path / "rerankd.toml"
    sections = (
        f'[upstreams.{key}]\nurl = "{program.url}"\napi_key = "{key}"\n' for key in ("right", "wrong")
    )
    file.write_text("".join(sections))
    ended = rerankd("doctor", "--json", "--config", str(file), home=ROOT / ".test-home", RERANKD_PORT="0")
    rows = {row["check"]: row for row in json.loads(ended.stdout)["checks"]}
    right, wrong = rows["upstream right"], rows["upstream wrong"]
    assert (right["status"], "serves xlmr-head" in right["says"]) == ("ok", True)
    assert (wrong["status"], "rejects its API key" in wrong["says"]) == ("warn", True)
    assert ended.returncode == 0, ended.stdout
