"""`rerankd inspect` of a repository on a hub: how it would be scored, or why not, before any download."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import checkpoints
from fake_hub import FakeHub, fake_hub
from rerankd.backends.table import BACKENDS
from support import GOLDEN, rerankd

XLMR = (GOLDEN / "xlmr-head.gguf").read_bytes()
Inspect = Callable[..., Any]


def files_of(folder: Path) -> dict[str, bytes]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeHub]:
    folder = tmp_path_factory.mktemp("models")
    repos = {
        "org/modules": files_of(checkpoints.with_modules("ettin", folder / "ettin")),
        "org/many": {f"m-{quant}.gguf": XLMR for quant in ("Q4_K_M", "Q8_0", "FP16")} | {"mmproj.gguf": XLMR},
        "org/alike": {"x.gguf": XLMR, "y.gguf": XLMR},
        "org/chat": {"chat.gguf": (GOLDEN / "qwen2-labels.gguf").read_bytes()},
        "org/embedder": files_of(checkpoints.copy("bert-pairs", folder / "e", architectures=["BertModel"])),
        "org/onnx": {"config.json": b"{}", "tokenizer.json": b"{}", "onnx/model.onnx": b""},
        "org/text": {"README.md": b""},
        "gpustack/bge-reranker-v2-m3-GGUF": {"m-Q8_0.gguf": XLMR},
    }
    with fake_hub(repos=repos) as running:
        yield running


@pytest.fixture
def inspect(hub: FakeHub, tmp_path: Path) -> Iterator[Inspect]:
    """Run `rerankd inspect`, and check that nothing was downloaded."""
    hub.asked.clear()
    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
    yield lambda *words: rerankd("inspect", *words, home=tmp_path / "home", **variables)
    weights = [span for path, span in hub.asked if path.endswith((".gguf", ".safetensors"))]
    assert all(span.startswith("bytes=0-") or not span for span in weights)
    assert not [*tmp_path.glob("home/models/*")]


def test_safetensors_with_modules(inspect: Inspect) -> None:
    found = inspect("hf:org/modules")
    assert found.returncode == 0, found.stderr
    lines = found.stdout.splitlines()
    assert lines[0] == "hf:org/modules: 1.02 MiB (safetensors, unquantised)"
    assert "a cross-encoder: its raw score" in found.stdout and "engine OpenVINO runs it" in found.stdout
    assert lines[-1].startswith("not on this machine: rerankd pull hf:org/modules downloads 1.02 MiB")
    assert "reading the start of the files of org/modules …" in found.stderr


def test_the_chosen_file_of_several_is_named_and_the_others_are_listed(inspect: Inspect) -> None:
    found = inspect("hf:org/many")
    assert found.stdout.startswith(
        "hf:org/many: m-Q8_0.gguf, 832 KiB (the default); also there: Q4_K_M, F16\n"
    )
    smaller = inspect("hf:org/many:q4_k_m")
    assert smaller.stdout.startswith(
        "hf:org/many: m-Q4_K_M.gguf, 832 KiB (as requested); also there: Q8_0, F16\n"
    )
    as_json = json.loads(inspect("hf:org/many", "--json").stdout)
    assert as_json["scorable"] and as_json["path"] is None
    assert as_json["source"].startswith("hf:org/many: m-Q8_0.gguf") and len(as_json["engines"]) == len(
        BACKENDS
    )


def test_a_choice_that_the_user_must_make_is_explained(inspect: Inspect) -> None:
    found = inspect("hf:org/alike")
    assert found.returncode == 3
    assert "More than one file of hf:org/alike matches. Available files:" in found.stderr
    assert "Name one of them, as in hf:org/alike/x.gguf" in found.stderr


@pytest.mark.parametrize(
    ("repo", "words"),
    [
        ("chat", "refused: it is a plain language model (chat or base), not trained to score documents"),
        ("embedder", "refused: its class is BertModel"),
        ("onnx", "its weights are in ONNX format"),
        ("text", "it contains no weights"),
    ],
)
def test_a_repository_that_is_no_reranker_says_why(repo: str, words: str, inspect: Inspect) -> None:
    found = inspect(f"hf:org/{repo}")
    assert found.returncode == 3
    assert words in found.stdout + found.stderr
    assert "rerankd pull hf:" not in found.stdout  # it would be refused


def test_facts_that_settings_can_supply_name_the_command_that_writes_them(inspect: Inspect) -> None:
    found = inspect("hf:org/chat")
    assert '\nref = "hf:org/chat"\n' in found.stdout
    assert "rerankd recipe new hf:org/chat" in found.stderr


def test_a_name_of_the_catalog_is_inspected_in_its_repository(inspect: Inspect) -> None:
    found = inspect("bge-reranker-v2-m3")
    assert found.returncode == 0, found.stderr
    assert found.stdout.startswith("hf:gpustack/bge-reranker-v2-m3-GGUF: m-Q8_0.gguf")
    assert "rerankd pull bge-reranker-v2-m3 downloads" in found.stdout
    refused = inspect("LightOn-rerank-PW")
    assert refused.returncode == 3 and "can't be scored correctly: its prompt is in" in refused.stderr


def test_a_gated_repository_says_what_to_do(inspect: Inspect, hub: FakeHub) -> None:
    hub.list_status = 403
    try:
        found = inspect("hf:org/many")
    finally:
        hub.list_status = 200
    assert found.returncode == 5
    assert "denies this account access to it (403): it is gated" in found.stderr
    assert (
        "Accept its terms at https://huggingface.co/org/many" in found.stderr and "HF_TOKEN" in found.stderr
    )


def test_a_check_needs_the_files(inspect: Inspect) -> None:
    found = inspect("hf:org/many", "--check")
    assert found.returncode == 3
    assert "--check needs the model on this machine. Run `rerankd pull hf:org/many`." in found.stderr
