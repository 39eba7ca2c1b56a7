"""What `rerankd inspect --json` chooses on machines with cards: the real probe, on a fake PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import fake_torch
from rerankd.backends.torch import survey
from rerankd.cli import app
from support import GOLDEN

MODEL = GOLDEN / "xlmr-head.gguf"


@pytest.fixture
def engines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Inspect a model on a machine with these cards; the engines by name."""

    def inspect(cards: str, *, devices: int | None = None, **env: str) -> dict[str, dict[str, Any]]:
        fake_torch.install(tmp_path / "fake", monkeypatch, cards)
        dev = tmp_path / "dev"
        dev.mkdir()
        for at in range(len(cards.split(",")) if devices is None else devices):
            (dev / f"nvidia{at}").touch()
        monkeypatch.setattr(survey, "DEV", dev)
        home = {"RERANKD_HOME": str(tmp_path / "home"), **env}
        ended = CliRunner().invoke(app, ("inspect", str(MODEL), "--json"), env=home, catch_exceptions=False)
        assert ended.exit_code == 0, ended.output
        return {row["name"]: row for row in json.loads(ended.stdout)["engines"]}

    return inspect


def used(found: dict[str, dict[str, Any]]) -> str:
    (name,) = (name for name, row in found.items() if row["used"])
    return name


@pytest.mark.parametrize(
    ("cards", "device"),
    [
        ("H100:80:79:9.0", "cuda:0"),
        ("T4:16:15:7.5,H100:80:79:9.0", "cuda:1"),  # bf16
        ("A10:24:1:8.6,A10:24:23:8.6", "cuda:1"),  # the first is occupied
        ("K80:12:12:3.7,A10:24:23:8.6", "cuda:1"),  # no kernels for the first
    ],
)
def test_pytorch_runs_on_the_best_card(engines: Any, cards: str, device: str) -> None:
    found = engines(cards)
    assert used(found) == "torch" and found["torch"]["title"] == f"PyTorch on {device}"


def test_a_card_without_room_leaves_the_model_to_the_next_engine(engines: Any) -> None:
    # An engine on the CPU does not make the free memory of cards unknown.
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE):
        found = engines("A10:24:0:8.6,A10:24:0:8.6")
    assert used(found) == "openvino"
    assert (
        "PyTorch needs" in found["torch"]["reason"] and "A10 (cuda:0) has 0.0 GiB" in found["torch"]["reason"]
    )
    assert not found["torch"]["refuses"]  # on the CPU it could run it


def test_a_named_card_without_room_is_refused(engines: Any) -> None:
    found = engines("A10:24:23:8.6,A10:24:0:8.6", RERANKD_DEVICE="cuda:1")
    assert found["torch"]["refuses"] and "A10 (cuda:1) has 0.0 GiB" in found["torch"]["reason"]
    assert "leave device at auto" in found["torch"]["next_step"]


def test_a_card_that_pytorch_can_not_use_is_named(engines: Any) -> None:
    found = engines("K80:12:12:3.7")
    assert used(found) == "openvino"
    assert "cuda:0 (K80): CUDA error: no kernel image is available" in found["torch"]["reason"]


def test_without_a_card_nothing_is_told(engines: Any) -> None:
    found = engines("", devices=0)
    assert used(found) == "openvino"
    assert found["torch"]["reason"] == "it computes every model, on a CPU slower than others"


def test_a_card_that_the_user_hides_is_not_told(engines: Any) -> None:
    found = engines("", devices=1, CUDA_VISIBLE_DEVICES="")
    assert found["torch"]["reason"] == "it computes every model, on a CPU slower than others"


def test_a_pytorch_that_sees_no_card_is_told(engines: Any) -> None:
    found = engines("", devices=1)
    assert "does not see the NVIDIA GPU" in found["torch"]["reason"]


def test_a_card_without_pytorch_names_the_command(engines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "version", lambda: "")
    found = engines("H100:80:79:9.0")
    assert used(found) == "openvino" and found["torch"]["refuses"]
    assert "faster on a GPU" in found["torch"]["reason"]
    assert found["torch"]["next_step"].startswith("install it: pip install 'rerankd[torch]'")
    assert "3 GB" in found["torch"]["next_step"]
