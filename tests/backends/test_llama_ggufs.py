"""Llama models in GGUF files, causal and in both directions, and the head beside the file of the latter."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from test_causal_can_fail import BOUND, SEEN, distance
from test_select import chosen, spec

import checkpoints
import ggufs
import llama_ggufs
from rerankd.domain import Recipe, Refusal
from rerankd.errors import ModelFileError
from rerankd.formats import gguf_metadata
from rerankd.formats.metadata import ModelMetadata
from rerankd.formats.weights import Weights
from rerankd.hub.store import Store
from rerankd.recipes import catalog
from rerankd.recipes.resolve import resolve
from rerankd.serving.prepare_model import fingerprint
from support import GOLDEN

CAUSAL, BOTH_WAYS = GOLDEN / "scaled" / "llama", GOLDEN / "scaled" / "nemotron"
NAME = "Llama Nemotron Rerank 1b v2"


def headed(folder: Path, *, row: str = "head.safetensors", arch: str = "llama-embed", **keys: Any) -> Path:
    """A body with its golden values, and its head beside it."""
    shutil.copy(BOTH_WAYS / "golden.json", folder)
    if row:
        llama_ggufs.write_row(BOTH_WAYS, folder / row)
    return llama_ggufs.convert(BOTH_WAYS, folder / "model.gguf", arch=arch, **{"pooling_type": 1} | keys)


def causal(folder: Path, **converted: Any) -> Path:
    shutil.copy(CAUSAL / "golden.json", folder)
    return llama_ggufs.convert(CAUSAL, folder / "model.gguf", **converted)


def nemotron(path: Path, **changes: Any) -> ModelMetadata:
    """The metadata of a file with the name and the sizes of the known model."""
    sizes = {"name": NAME, "block_count": 16, "embedding_length": 2048}
    return replace(gguf_metadata.read(path), **sizes | changes)


def test_a_causal_llama_has_the_scores_of_transformers(tmp_path: Path) -> None:
    path = causal(tmp_path)
    assert max(distance(path, shared) for shared in (0, 20)) < BOUND


@pytest.mark.parametrize("row", ["head.safetensors", "model.head.safetensors"])
def test_a_body_with_its_head_beside_it_has_the_scores_of_its_class(row: str, tmp_path: Path) -> None:
    path = headed(tmp_path, row=row)
    assert distance(path) < BOUND
    metadata = gguf_metadata.read(path)
    assert metadata.head_file == tmp_path / row and metadata.cls_output_rows == 1
    assert not metadata.is_causal


def test_a_body_that_declares_attention_in_both_directions_is_read_so(tmp_path: Path) -> None:
    assert distance(headed(tmp_path, arch="llama", attention__causal=False)) < BOUND


@pytest.mark.skipif(find_spec("torch") is None, reason="no PyTorch here: make test-torch")
def test_pytorch_computes_the_same(tmp_path: Path) -> None:
    from test_torch_networks import worst

    from rerankd.backends.torch import runtime
    from rerankd.backends.worker.passes import Reading

    cases = json.loads((BOTH_WAYS / "golden.json").read_text())
    inputs = [Reading(np.array(case["ids"], np.int32), len(case["ids"])) for case in cases]
    wanted = np.array([case["raw"] for case in cases])
    assert worst(runtime.start(headed(tmp_path), "rank"), inputs, wanted) < BOUND


@pytest.mark.parametrize("part", ["attn_q", "attn_k", "rope_freqs"])
def test_a_part_that_is_not_as_in_gguf_is_seen(part: str, tmp_path: Path) -> None:
    def changed(held: dict[str, Any]) -> dict[str, Any]:
        return {name: np.flip(data, 0) if part in name else data for name, data in held.items()}

    path = ggufs.rewrite(causal(tmp_path), tmp_path / "other.gguf", tensors=changed)
    assert distance(path) > SEEN


def test_rows_of_a_quantised_matrix_are_in_the_order_of_transformers(tmp_path: Path) -> None:
    weights = Weights(causal(tmp_path, kind="Q8_0"))
    held = checkpoints.read(CAUSAL / "model.safetensors")
    _, shape, data = held["model.layers.1.self_attn.q_proj.weight"]
    wanted = np.frombuffer(data, np.float32).reshape(shape)
    rounded = gguf.quants.dequantize(
        gguf.quants.quantize(wanted, gguf.GGMLQuantizationType.Q8_0), gguf.GGMLQuantizationType.Q8_0
    )
    assert (weights.array("blk.1.attn_q.weight", shape) == rounded).all()
    groups = weights.groups("blk.1.attn_q.weight", *shape)
    assert groups is not None and ((groups[0] * groups[1]).reshape(shape) == rounded).all()


def test_the_known_model_gets_its_prompt(tmp_path: Path) -> None:
    resolved = resolve(nemotron(headed(tmp_path)), catalog.known())
    assert isinstance(resolved.outcome, Recipe) and resolved.outcome.method == "cross_encoder"
    assert resolved.outcome.template == "question:{query} \n \n passage:{document}"


@pytest.mark.parametrize(
    ("made", "changes", "why"),
    [
        (
            {"row": ""},
            {},
            r"converter drops score\.weight.*put score\.weight .* into the file head\.safetensors",
        ),
        ({"pooling_type": 3}, {}, "declares the pooling 'last'"),
        ({}, {"name": "Model"}, "its head reads a prompt.*header names it"),
        ({}, {"block_count": 12}, "sizes of a model that rerankd does not know"),
        ({"arch": "llama"}, {}, "declares causal attention"),
    ],
)
def test_what_is_not_the_known_model_with_its_head_is_refused(
    made: dict[str, Any], changes: dict[str, Any], why: str, tmp_path: Path
) -> None:
    outcome = resolve(nemotron(headed(tmp_path, **made), **changes), catalog.known()).outcome
    assert isinstance(outcome, Refusal)
    assert re.search(why, f"{outcome.reason}. {outcome.next_step}"), outcome


def test_only_backends_that_read_the_head_run_the_model(tmp_path: Path) -> None:
    metadata = nemotron(headed(tmp_path))
    recipe = resolve(metadata, catalog.known()).require()
    model = replace(spec(recipe, "llama-embed", ("gpt2", "llama-bpe")), metadata=metadata)
    found = chosen("auto", model)
    assert found.offer.backend.name == "openvino"
    assert "does not read the head in head.safetensors" in found.refusals["llama.cpp"].reason


def test_the_head_of_another_model_is_reported(tmp_path: Path) -> None:
    path = headed(tmp_path)
    head = tmp_path / "head.safetensors"
    (kind, _, data), *_ = checkpoints.read(head).values()
    checkpoints.write(head, {"score.weight": (kind, [1, 16], data[:64])})
    with pytest.raises(ModelFileError, match="the head of another model"):
        gguf_metadata.read(path)
    checkpoints.write(head, {"classifier.weight": (kind, [1, 32], data)})
    with pytest.raises(ModelFileError, match=r"consists of score\.weight, but it has classifier\.weight"):
        gguf_metadata.read(path)


@pytest.mark.parametrize(
    ("kind", "shape", "size", "says"),
    [
        ("F64", [1, 32], 256, r"head\.safetensors: its tensor score\.weight has the type F64"),
        ("F8_E4M3", [1, 32], 32, "has the type F8_E4M3"),
        ("F32", [32], 128, r"has the shape \[32\], which is no matrix"),
        ("F32", [1, 1, 32], 128, r"the shape \[1, 1, 32\]"),
    ],
)
def test_a_head_that_no_engine_reads_is_named(
    kind: str, shape: list[int], size: int, says: str, tmp_path: Path
) -> None:
    path = headed(tmp_path)
    checkpoints.write(tmp_path / "head.safetensors", {"score.weight": (kind, shape, bytes(size))})
    with pytest.raises(ModelFileError, match=says):
        gguf_metadata.read(path)


def test_a_file_beside_a_model_that_has_no_such_head_is_not_read(tmp_path: Path) -> None:
    path = shutil.copy(GOLDEN / "xlmr-head.gguf", tmp_path)
    (tmp_path / "head.safetensors").write_bytes(b"of another program")
    metadata = gguf_metadata.read(path)
    assert metadata.head_file is None and len(metadata.parts) == 1


def test_a_new_head_makes_the_model_another_one(tmp_path: Path) -> None:
    path = headed(tmp_path, row="")
    before = fingerprint(path)
    llama_ggufs.write_row(BOTH_WAYS, tmp_path / "head.safetensors")
    assert fingerprint(path) != before


def test_a_head_that_a_user_puts_into_the_store_is_a_file_of_the_model(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.models / "mine"
    folder.mkdir(parents=True)
    headed(folder)
    (record,) = store.records()
    assert record.files == ("model.gguf", "head.safetensors")
    assert store.path(record) == folder / "model.gguf"
