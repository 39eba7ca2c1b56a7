"""The speed of both backends in a causal model's prompts, as `auto` compares it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rerankd.backends import prompt_rate
from rerankd.backends.base import EngineSpec
from rerankd.backends.llama import installed
from rerankd.backends.llama import prompt_rate as of_llama
from rerankd.backends.llama.backend import LlamaBackend
from rerankd.backends.llama.options import LlamaOptions
from rerankd.backends.openvino import prompt_rate as of_openvino
from rerankd.config import Settings
from rerankd.domain import Normalization, Recipe, Refusal
from rerankd.formats.metadata import ModelMetadata
from rerankd.serving import prepare_model
from rerankd.state import StateStore
from support import golden
from twins import Twin


def test_a_rate_is_measured_once_and_stored(tmp_path: Path) -> None:
    learned, calls = StateStore(tmp_path), iter((90.0, 80.0))
    assert prompt_rate.of("engine 1", learned, None) == 0.0
    for _ in range(2):
        assert prompt_rate.of("engine 1", learned, lambda: next(calls)) == 90.0
    assert prompt_rate.of("engine 1", StateStore(tmp_path), None) == 90.0
    assert prompt_rate.of("engine 2", learned, lambda: next(calls)) == 80.0, "another build is measured"


def test_both_backends_are_measured_in_the_same_unit() -> None:
    bundled = installed.bundled()
    assert bundled is not None
    rates = [of_llama.measure(bundled.program, kind) for kind in ("Q8_0", "Q4_K", "F16")]
    rates += [of_openvino.measure("f32", compressed=compressed) for compressed in (True, False)]
    # A core computes from some GFLOP/s without vectors to some hundreds.
    assert all(1 < rate < 2000 for rate in rates), rates
    assert of_llama.measure((sys.executable, "-c", "raise SystemExit(1)"), "Q8_0") == 0.0
    said = subprocess.run(
        [sys.executable, "-P", "-m", "rerankd.backends.openvino.prompt_rate", "--compressed", "f32"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert 1 < float(said.stdout) < 2000


def test_a_file_is_rated_with_matrices_of_its_own_type(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(of_llama, "measure", lambda _, kind: {"Q8_0": 108.0, "Q5_K": 270.0}[kind])
    backend, learned = LlamaBackend(), StateStore(tmp_path)
    recipe = Recipe("causal_lm", 512, Normalization("sigmoid"), template="{document}", labels=("a", "b"))
    # IQ4_XS stands for the types that are not measured.
    for quantisation, rate in (("Q8_0", 108.0), ("Q5_K", 270.0), ("IQ4_XS", 108.0)):
        metadata = ModelMetadata(path=Path("m.gguf"), architecture="qwen3", quantisation=quantisation)
        spec = EngineSpec("m", metadata.path, recipe, {}, metadata=metadata)
        offer = backend.offer(spec, LlamaOptions(), backend.survey(LlamaOptions(), tmp_path))
        assert not isinstance(offer, Refusal)
        assert backend.prompt_rate(offer, learned, measure=True) == rate


@pytest.mark.parametrize(("openvino", "llama", "used"), [(160.0, 90.0, "openvino"), (60.0, 90.0, "llama")])
def test_a_stored_rate_decides_which_backend_a_file_runs_on(
    openvino: float, llama: float, used: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = large(tmp_path)
    rates = {"openvino": openvino, "llama": llama}
    for backend in prepare_model.backend_offers.BACKENDS:
        if backend.name in rates:
            rate = rates[backend.name]
            monkeypatch.setattr(
                type(backend), "prompt_rate", lambda *_, rate=rate, measure: rate if measure else 0.0
            )
    prompt = {key: golden("qwen3-headless")[key] for key in ("template", "labels", "instruction")}
    settings = Settings.model_validate({"model": str(path), "home": tmp_path, "scoring": prompt})
    offer = prepare_model.prepare(settings).engine
    assert (offer.backend.name, offer.prompt_rate) == (used, rates[used])
    assert f"{rates[used]:.0f} GFLOP/s for one thread" in offer.reason


def large(folder: Path) -> Path:
    """A sparse file with Qwen3-Reranker-0.6B's sizes."""
    shapes = {
        "attn_q": (2048, 1024), "attn_k": (1024, 1024), "attn_v": (1024, 1024), "attn_output": (1024, 2048),
        "ffn_gate": (3072, 1024), "ffn_up": (3072, 1024), "ffn_down": (1024, 3072),
    }  # fmt: skip
    tensors = {f"blk.{at}.{name}.weight": shape for at in range(28) for name, shape in shapes.items()}
    twin = Twin("judge", extra={"tokenizer.ggml.pre": "qwen2"}, tensors=tensors)
    return twin.write(folder / "judge.gguf")
