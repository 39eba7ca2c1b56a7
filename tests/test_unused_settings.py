"""A setting of an engine that has no effect on a model is reported, never ignored in silence.

Each row is a model on an engine, and each setting is changed in turn. A new setting fails here until a row
says what becomes of it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rerankd import config, machine
from rerankd.backends.base import Offer
from rerankd.backends.llama.binaries import Binaries, Binary
from rerankd.backends.table import BACKENDS
from rerankd.backends.torch.devices import Device, Survey
from rerankd.config import EffectiveModelSettings
from rerankd.formats import model_files
from rerankd.machine import Gpu
from rerankd.serving import backend_offers
from rerankd.serving.prepare_model import resolve_file
from support import GOLDEN, rerankd

MODEL = GOLDEN / "xlmr-head.gguf"
CPU, CARD = Device("cpu", "a CPU"), Device("cuda:0", "a card", 2**34, True, (9, 0))
OLD_CARD = replace(CARD, has_bf16=False, capability=(7, 5))
BUNDLED = Binaries(None, 0, "", (), Binary("bundled", ("bundled",), "", 11549), (), ())
OWN = replace(BUNDLED, own=Path("/my/server"), gpus=(Gpu("card", 2**34, 2**34, "9.0"),))

# Each setting with a value that is not its default.
CHANGES: list[tuple[str, Any]] = [
    ("precision", "f32"),
    ("precision", "bf16"),
    ("precision", "fp8"),
    ("weights", "compressed"),
    ("device", "cpu"),
    ("device", "cuda"),
    ("trust_remote_code", True),
    ("gpu_layers", 0),
    ("gpu_layers", 5),
    ("llama_path", "/my/server"),
    ("engine_args", "--no-mmap"),
]
OF_LLAMA = {"gpu_layers 5", "llama_path /my/server", "engine_args --no-mmap"}
NO_GPU = {*OF_LLAMA, "device cuda"}
# A model on an engine and a machine: backend, survey, CPU instructions, fixed settings, and the changes that
# have no effect.
ROWS: dict[str, tuple[str, Any, tuple[str, ...], dict[str, Any], set[str]]] = {
    "OpenVINO with bf16": ("openvino", True, ("avx512_bf16",), {}, {*NO_GPU, "precision fp8"}),
    "OpenVINO without bf16": ("openvino", True, (), {}, {*NO_GPU, "precision fp8", "precision bf16"}),
    "ONNX Runtime": ("onnx", True, (), {"precision": "int8"}, {*NO_GPU, "weights compressed"}),
    "PyTorch on a CPU": (
        "torch",
        Survey("2", (CPU,)),
        (),
        {},
        {*OF_LLAMA, "precision bf16", "precision fp8"},
    ),
    "PyTorch on a card": ("torch", Survey("2", (CARD, CPU)), (), {}, {*OF_LLAMA, "gpu_layers 0"}),
    "PyTorch on an old card": (
        "torch",
        Survey("2", (OLD_CARD, CPU)),
        (),
        {},
        {*OF_LLAMA, "gpu_layers 0", "precision bf16", "precision fp8"},
    ),
    "llama.cpp on a CPU": (
        "llama",
        BUNDLED,
        ("avx512_bf16",),
        {},
        {"precision bf16", "precision fp8", "weights compressed", "device cuda", "gpu_layers 5"},
    ),
    "llama.cpp on a card": (
        "llama",
        OWN,
        (),
        {},
        {"precision bf16", "precision fp8", "weights compressed", "device cuda", "device cpu"},
    ),
}


def offered(name: str, survey: Any, **given: Any) -> Offer | None:
    backend = next(one for one in BACKENDS if one.name == name)
    wanted: EffectiveModelSettings = config.load("", {}, given).of(str(MODEL))
    metadata = model_files.read(MODEL)
    spec = backend_offers.spec("m", MODEL, metadata, resolve_file(metadata, wanted.scoring), wanted, "f")
    answer = backend.offer(spec, wanted.options(backend.Options), survey)
    return backend_offers.with_unused(answer, wanted) if isinstance(answer, Offer) else None


@pytest.mark.parametrize("row", ROWS)
def test_each_setting_that_has_no_effect_is_reported(row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, survey, instructions, fixed, unused = ROWS[row]
    monkeypatch.setattr(machine, "instructions", lambda: frozenset(instructions))
    found = set()
    for setting, value in CHANGES:
        offer = offered(name, survey, **{setting: value, **fixed})  # fixed: other values are refused
        if offer is not None and setting in offer.unused:
            assert offer.unused == {setting} and f"{setting} has no effect" in offer.reason
            found.add(f"{setting} {value}")
    assert found == unused
    plain = offered(name, survey, **fixed)
    assert plain is not None and not plain.unused and "no effect" not in plain.reason


def test_every_setting_of_an_engine_is_changed() -> None:
    assert {name for name, _ in CHANGES} == {*backend_offers.OPTIONS}


def test_inspect_and_serve_say_which_settings_have_no_effect(tmp_path: Path) -> None:
    file = tmp_path / "rerankd.toml"
    file.write_text(
        f'[models.m]\nref = "{MODEL}"\nengine = "llama"\nweights = "compressed"\ngpu_layers = 3\n'
    )
    shown = rerankd("inspect", "m", "--check", "--config", str(file), home=tmp_path)
    assert "gpu_layers and weights have no effect" in shown.stdout, shown.stderr
    assert "m runs on llama.cpp bundled" in shown.stderr
    assert ", where gpu_layers and weights have no effect" in shown.stderr
