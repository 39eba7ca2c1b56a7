"""The files under deploy/, as far as they can be checked without running containers or systemd."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import sandbox
from rerankd.backends.torch import backend, survey
from rerankd.config import Settings
from rerankd.errors import ConfigError, EngineError, FetchError, ModelFileError
from support import ROOT, Program, children, post, start_serving

DEPLOY = ROOT / "deploy"
DOCKERFILES = [DEPLOY / "Dockerfile", DEPLOY / "Dockerfile.cuda"]
COMPOSE = [DEPLOY / "compose.yaml", DEPLOY / "compose.gpu.yaml"]
BIN = Path(sys.executable).parent
# systemd's own word for 2.0 and less is "OK", and a service that is hardened in nothing has 9.6.
MOST_EXPOSURE = 2.0

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here"
)


def ran(*command: Any) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    """The unit with its drop-in for a GPU beside it, and a program that is here."""
    text = (DEPLOY / "rerankd.service").read_text()
    assert "\nExecStart=/opt/rerankd/bin/rerankd serve\n" in text
    path = tmp_path / "rerankd.service"
    path.write_text(text.replace("/opt/rerankd/bin/rerankd", "/bin/true"))
    return path


def test_a_network_that_comes_late_does_not_end_the_unit_for_good() -> None:
    """systemd gives a unit up after StartLimitBurst failures, which an unreachable hub makes in seconds."""
    lines = (DEPLOY / "rerankd.service").read_text().splitlines()
    assert "StartLimitIntervalSec=0" in lines and "Restart=on-failure" in lines
    assert f"RestartPreventExitStatus={ConfigError.exit_code}" in lines
    passing = {FetchError.exit_code, ModelFileError.exit_code, EngineError.exit_code}
    assert ConfigError.exit_code not in passing


@needs_systemd
def test_the_unit_is_valid_and_hardened(unit: Path) -> None:
    assert ran("systemd-analyze", "verify", "--man=no", unit) == ""
    said = ran("systemd-analyze", "security", "--offline=true", unit)
    found = re.search(r"exposure level for rerankd.service: ([\d.]+)", said)
    assert found is not None, said
    assert float(found[1]) <= MOST_EXPOSURE


def test_the_unit_starts_the_default_model_under_its_own_restrictions(home: Path) -> None:
    text = (DEPLOY / "rerankd.service").read_text()
    section = text.partition("[Service]")[2].partition("[Install]")[0]
    hardened = re.compile(r"Protect|Private|Restrict|Lock|Memory|NoNew|Remove|SystemCall|Capab|Ambient|UMask")
    names = set(re.findall(r"^(\w+)=", section, re.MULTILINE))
    assert {name for name in names if hardened.match(name)} <= sandbox.APPLIED | sandbox.NOT_APPLIED
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/var/tmp") as own:
        state, runtime = Path(own) / "state", Path(own) / "run"
        (state / "models").mkdir(parents=True)
        runtime.mkdir(mode=0o700)
        for file in (home / "models").glob("*.gguf"):
            (state / "models" / file.name).symlink_to(file)
        inside = sandbox.unit(text, state, runtime)
        env = {"XDG_RUNTIME_DIR": str(runtime), "HF_HOME": str(state / "hf")}
        answers_the_panda(start_serving(state, inside=inside, **env))
        assert list(runtime.iterdir()) == []
        assert (state / "logs").is_dir()


COMPILES = """
import torch
def layer(x): return torch.nn.functional.gelu(x @ x) * 2
x = torch.ones(16, 16)
assert torch.allclose(torch.compile(layer, dynamic=True)(x), layer(x))
"""


@pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch here: make test-torch")
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
@pytest.mark.parametrize("works", [True, False])
def test_torch_compiles_under_the_units_restrictions(works: bool) -> None:
    """With MemoryDenyWriteExecute, which the unit leaves off, it does not even compute: its kernels for CPUs
    are made at run time."""
    text = (DEPLOY / "rerankd.service").read_text() + "MemoryDenyWriteExecute=yes\n" * (not works)
    with tempfile.TemporaryDirectory(prefix="rd-", dir="/var/tmp") as own:
        state, runtime = Path(own) / "state", Path(own) / "run"
        state.mkdir()
        runtime.mkdir(mode=0o700)
        found = survey.look(state)
        argv = [*sandbox.unit(text, state, runtime), sys.executable, "-c", COMPILES]
        env = {"PATH": os.environ["PATH"], **backend.environment(found.cache, threads=1)}
        done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=300)
        assert (done.returncode == 0) is works, done.stderr
        if works:
            assert any((state / "cache" / "torch").rglob("*.so"))
        else:
            assert "could not create a primitive" in done.stderr


def test_it_serves_in_a_container_with_a_read_only_home_and_a_user_of_its_own(home: Path) -> None:
    """A private /tmp, no HOME, no entry in /etc/passwd, no /dev/shm."""
    said = answers_the_panda(start_serving(home, inside=sandbox.container(home)))
    assert "Traceback" not in said


def answers_the_panda(program: Program) -> str:
    """Ask the built-in model, and end it; what it has said."""
    assert program.process.stderr is not None
    try:
        documents = ["hi", "它是一种熊", "大熊猫是一种原产于中国的熊科动物。"]
        answer = post(f"{program.url}/v1/rerank", {"query": "什么是熊猫？", "documents": documents})
        assert [row["index"] for row in answer.json()["results"]] == [2, 1, 0]
        (rerankd,) = children(program.process.pid)  # the sandbox itself would not hand it on
        os.kill(rerankd, signal.SIGTERM)
        assert program.process.wait(30) == 0
        return "".join(program.said) + program.process.stderr.read()
    finally:
        program.process.kill()
        program.process.stderr.close()


@needs_systemd
def test_the_unit_with_a_gpu_is_valid(unit: Path) -> None:
    folder = unit.with_name("rerankd.service.d")
    folder.mkdir()
    shutil.copy(DEPLOY / "rerankd-gpu.conf", folder / "gpu.conf")
    assert ran("systemd-analyze", "verify", "--man=no", unit) == ""


@needs_systemd
def test_the_socket_unit_is_valid(unit: Path) -> None:
    shutil.copy(DEPLOY / "rerankd.socket", unit.with_name("rerankd.socket"))
    assert ran("systemd-analyze", "verify", "--man=no", unit.with_name("rerankd.socket")) == ""


def test_the_socket_unit_holds_the_default_address_and_the_unit_notifies() -> None:
    settings = Settings()
    assert f"\nListenStream={settings.host}:{settings.port}\n" in (DEPLOY / "rerankd.socket").read_text()
    assert "\nType=notify\n" in (DEPLOY / "rerankd.service").read_text()


def test_the_unit_waits_for_a_drain_and_a_stop() -> None:
    text = (DEPLOY / "rerankd.service").read_text()
    found = re.search(r"^TimeoutStopSec=(\d+)$", text, re.MULTILINE)
    settings = Settings()
    assert found is not None
    assert int(found[1]) > settings.drain_timeout_s + settings.stop_timeout_s
    grace = yaml.safe_load(COMPOSE[0].read_text())["services"]["rerankd"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > settings.drain_timeout_s + settings.stop_timeout_s


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_has_nothing_to_lint_and_an_init_as_process_1(path: Path) -> None:
    assert ran(BIN / "hadolint", "--failure-threshold", "style", path) == ""
    text = path.read_text()
    assert 'ENTRYPOINT ["tini", "--", "rerankd"]' in text
    assert re.search(r"install -y .*\btini\b", text)
    for source in re.findall(r"^COPY (?!--from)(.*) \S+$", text, re.MULTILINE):
        for name in source.split():
            assert (ROOT / name).exists(), name
            assert f"!{name}" in (ROOT / ".dockerignore").read_text().splitlines()
    assert f"EXPOSE {Settings().port}" in text
    assert f":{Settings().port}/health" in text


def test_the_cuda_images_are_stages_that_compose_names_and_the_extra_exists() -> None:
    text = DOCKERFILES[1].read_text()
    stages = re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE)
    assert stages == ["torch", "build", "llama"]  # the last one is built by default
    build = yaml.safe_load(COMPOSE[1].read_text())["services"]["rerankd"]["build"]
    assert build["target"] == "${GPU_ENGINE:-llama}"
    (extra,) = re.findall(r"pip install --no-cache-dir '\.\[(\w+)\]'", text)
    assert extra in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for stage in text.split("FROM ")[1:]:
        is_final = "build" not in stage.splitlines()[0]
        assert ('ENTRYPOINT ["tini", "--", "rerankd"]' in stage) is is_final


def test_what_the_cuda_image_runs_is_a_command() -> None:
    text = DOCKERFILES[1].read_text()
    line = next(line for line in text.splitlines() if "rerankd engine build" in line)
    helped = ran(sys.executable, "-m", "rerankd", "engine", "build", "--help")
    for flag in re.findall(r"--[a-z-]+", line):
        assert flag in helped


@pytest.mark.parametrize("path", COMPOSE, ids=lambda path: path.name)
def test_a_compose_file_is_one(path: Path) -> None:
    ran(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)


def test_compose_is_beside_dify_and_says_what_to_type() -> None:
    text = COMPOSE[0].read_text()
    value = yaml.safe_load(text)
    assert value["networks"]["dify"]["external"] is True
    assert value["services"]["rerankd"]["networks"] == ["dify"]
    # Only Dify's network reaches it.
    assert "ports" not in value["services"]["rerankd"]
    assert f"http://rerankd:{Settings().port}/v1" in text
    for path in COMPOSE:
        built = yaml.safe_load(path.read_text())["services"]["rerankd"]["build"]
        assert (path.parent / built["context"] / built["dockerfile"]).is_file()


def test_every_setting_that_is_set_is_one() -> None:
    for path in (file for file in DEPLOY.rglob("*") if file.is_file()):
        for name in re.findall(r"RERANKD_([A-Z_]+)", path.read_text()):
            assert name.lower() in (*Settings.model_fields, "config"), f"{path.name}: RERANKD_{name}"
