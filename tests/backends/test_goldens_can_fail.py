"""Golden tests must be able to fail: break one part of a model at a time, and check that the scores differ.

The parts are broken in the model's files (configuration or tensors), so the served code is what is tested.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from breaks import Change, config, halves_swapped, next_rows, ones, same_rows, tensor, thirds_turned, zeros
from cases import BOUNDS, PAIRS

import ggufs
from rerankd.backends.openvino.encoder import Encoder
from rerankd.backends.worker.passes import Reading, padded
from rerankd.service import Reranker
from support import GOLDEN, golden, golden_settings
from twins import write_wordpiece

SCALED = GOLDEN / "scaled"
FAMILIES = ("bert", "xlmr", "modernbert-mean", "modernbert-cls")
# The largest error of OpenVINO in float32.
BOUND = 2e-5
# A broken part must change scores by far more.
SEEN = 20 * BOUND


def copied(family: str, folder: Path) -> Path:
    """Copy the checkpoint of a family, and add a tokenizer. The tests pass token ids."""
    made = folder / family
    shutil.copytree(SCALED / family, made)
    write_wordpiece(made / "tokenizer.json")
    return made


def distance(folder: Path, second: int = 0) -> float:
    """Return the largest difference from transformers' scores, for single pairs and for one padded batch."""
    cases = json.loads((folder / "golden.json").read_text())
    encoder = Encoder(folder, "rank", threads=1, precision="f32")
    texts = [Reading(case["ids"], case["second"] + second) for case in cases]
    wanted = np.array([case["raw"] for case in cases])
    alone = np.array([encoder.forward(*padded([text]))[0, 0] for text in texts])
    together = encoder.forward(*padded(texts))[:, 0]
    assert np.abs(alone - together).max() < BOUND
    return float(np.abs(alone - wanted).max())


ROPE = {"full_attention": {"rope_theta": 160000.0}, "sliding_attention": {"rope_theta": 10000.0}}
BERT_LIKE = {
    "the embeddings' norm": tensor("embeddings.LayerNorm.weight", ones),
    "the embeddings' norm's bias": tensor("embeddings.LayerNorm.bias", zeros),
    "the attention's norm": tensor("attention.output.LayerNorm.weight", ones),
    "the attention's norm's bias": tensor("attention.output.LayerNorm.bias", zeros),
    "the layer's norm": tensor("0.output.LayerNorm.weight", ones),
    "the norms' epsilon": config(layer_norm_eps=1e-2),
    "positions one place off": tensor("position_embeddings.weight", next_rows),
    "the query's bias": tensor("query.bias", zeros),
    "the inner layer's bias": tensor("intermediate.dense.bias", zeros),
    "the number of heads": config(num_attention_heads=2),
}
MODERN = {
    "the window, one token less": config(local_attention=14),
    "the window, one token more": config(local_attention=18),
    "the rope base of global layers": config(
        rope_parameters=ROPE | {"full_attention": {"rope_theta": 80000.0}}
    ),
    "the rope base of local layers": config(
        rope_parameters=ROPE | {"sliding_attention": {"rope_theta": 5000.0}}
    ),
    "which layers are local": config(
        layer_types=["full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    ),
    "the embeddings' norm": tensor("embeddings.norm.weight", ones),
    "the norm before attention": tensor("attn_norm.weight", ones),
    "the norm before the MLP": tensor("mlp_norm.weight", ones),
    "the last norm": tensor("final_norm.weight", ones),
    "the head's norm": tensor("head.norm.weight", ones),
    "the norms' epsilon": config(norm_eps=1e-2),
    "query, key and value in another order": tensor("attn.Wqkv.weight", thirds_turned),
    "gate and value of the MLP swapped": tensor("mlp.Wi.weight", halves_swapped),
    "the number of heads": config(num_attention_heads=2),
    "the head's bias": tensor("classifier.bias", zeros),
}
BREAKS = [
    *(("bert", what, change) for what, change in BERT_LIKE.items()),
    ("bert", "token types all alike", tensor("token_type_embeddings.weight", same_rows)),
    ("bert", "the pooler", tensor("pooler.dense.weight", next_rows)),
    ("bert", "the pooler's bias", tensor("pooler.dense.bias", zeros)),
    ("bert", "the head's bias", tensor("classifier.bias", zeros)),
    *(("xlmr", what, change) for what, change in BERT_LIKE.items()),
    ("xlmr", "where positions begin", config(pad_token_id=0)),
    ("xlmr", "the head's first layer", tensor("classifier.dense.weight", next_rows)),
    ("xlmr", "the head's bias", tensor("classifier.out_proj.bias", zeros)),
    *(("modernbert-mean", what, change) for what, change in MODERN.items()),
    *(("modernbert-cls", what, change) for what, change in MODERN.items()),
    ("modernbert-mean", "the pooling", config(classifier_pooling="cls")),
    ("modernbert-cls", "the pooling", config(classifier_pooling="mean")),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_unbroken_the_scores_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    assert distance(copied(family, tmp_path)) < BOUND


@pytest.mark.parametrize(
    ("family", "what", "change"), BREAKS, ids=[f"{family}: {what}" for family, what, _ in BREAKS]
)
def test_a_broken_part_is_seen(family: str, what: str, change: Change, tmp_path: Path) -> None:
    folder = copied(family, tmp_path)
    change(folder)
    assert distance(folder) > SEEN, what


def test_a_second_text_that_begins_one_token_late_is_seen(tmp_path: Path) -> None:
    assert distance(copied("bert", tmp_path), second=1) > SEEN


# The same for keys and tensors of GGUF files.


def sampled(name: str) -> tuple[list[dict[str, Any]], Any]:
    cases = [case for case in golden(name)["cases"] if case["fits"]][::8]
    return cases, np.array([case["raw"] for case in cases])


def file_distance(path: Path, name: str) -> float:
    """Return OpenVINO's largest difference from the golden scores of `name` for a GGUF file."""
    cases, wanted = sampled(name)
    encoder = Encoder(path, "rank", threads=1, precision="f32")
    found = [encoder.forward(*padded([Reading(case["ids"], len(case["ids"]))]))[0, 0] for case in cases]
    return float(np.abs(np.array(found) - wanted).max())


def test_a_merged_attention_matrix_gives_the_scores_of_its_parts(tmp_path: Path) -> None:
    """GGUF files of jina-reranker-v2 have one. With its parts in another order, scores must differ."""
    merged = ggufs.rewrite(
        GOLDEN / "xlmr-head.gguf", tmp_path / "merged.gguf", tensors=ggufs.merged_attention
    )
    assert file_distance(merged, "xlmr-head") < 1e-4

    def turned(held: dict[str, Any]) -> dict[str, Any]:
        held = ggufs.merged_attention(held)
        return {name: thirds_turned(data) if "attn_qkv" in name else data for name, data in held.items()}

    other = ggufs.rewrite(GOLDEN / "xlmr-head.gguf", tmp_path / "turned.gguf", tensors=turned)
    assert file_distance(other, "xlmr-head") > 0.01


def only(part: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    def tensors(held: dict[str, Any]) -> dict[str, Any]:
        assert any(part in name for name in held), f"there is no tensor {part}"
        return {name: change(data) if part in name else data for name, data in held.items()}

    return {"tensors": tensors}


FILE_BREAKS = {
    "the window, one token less": ("modernbert-head", {"keys": {"modern-bert.attention.sliding_window": 14}}),
    "the rope base of global layers": ("modernbert-head", {"keys": {"modern-bert.rope.freq_base": 80000.0}}),
    "the rope base of local layers": (
        "modernbert-head",
        {"keys": {"modern-bert.rope.freq_base_swa": 5000.0}},
    ),
    "the pooling": ("modernbert-head", {"keys": {"modern-bert.classifier.pooling_type": 2}}),
    "the norm before the MLP": ("modernbert-head", only("ffn_norm", ones)),
    "the head's norm": ("modernbert-head", only("cls.norm", ones)),
    "positions one place off": ("xlmr-head", only("position_embd", next_rows)),
    "the attention's norm": ("xlmr-head", only("attn_output_norm.weight", ones)),
    "the head's first layer": ("xlmr-head", only("cls.weight", next_rows)),
    "the rope base": ("qwen3-headless", {"keys": {"qwen3.rope.freq_base": 500000.0}}),
    "the norm of queries": ("qwen3-headless", only("attn_q_norm", ones)),
    "the norm of keys": ("qwen3-headless", only("attn_k_norm", ones)),
    "the last norm": ("qwen3-headless", only("output_norm", ones)),
    "one label: the rope base": ("qwen3-yes", {"keys": {"qwen3.rope.freq_base": 500000.0}}),
    "one label: the last norm": ("gemma-yes", only("output_norm", ones)),
    "one label: the norm before the MLP": ("gemma-yes", only("ffn_norm", ones)),
}


@pytest.mark.parametrize("what", [what for what, (name, _) in FILE_BREAKS.items() if name.endswith("-head")])
def test_a_broken_part_of_a_file_is_seen_on_openvino(what: str, tmp_path: Path) -> None:
    name, change = FILE_BREAKS[what]
    broken = ggufs.rewrite(GOLDEN / golden(name)["model"], tmp_path / "broken.gguf", **change)  # type: ignore[arg-type]
    assert file_distance(GOLDEN / f"{name}.gguf", name) < 1e-4
    assert file_distance(broken, name) > 2e-3


async def llama_distance(path: Path, name: str, home: Path) -> float:
    """Return llama.cpp's largest difference from the golden scores of `name` for a file, with the default
    settings."""
    cases, wanted = sampled(name)
    settings = golden_settings(name, home, engine="llama").model_copy(update={"model": (str(path),)})
    found = []
    async with Reranker(settings) as reranker:
        for case in cases:
            pair = PAIRS[case["id"]]
            result = await reranker.rerank(pair["query"], [pair["document"]], raw_scores=True)
            found.append(result.results[0].score)
    return float(np.abs(np.array(found) - wanted).max())


@pytest.mark.parametrize("name", ["xlmr-head", "modernbert-head", "qwen3-headless"])
async def test_an_unbroken_copy_of_a_file_is_scored_as_the_file_by_llama_cpp(
    name: str, tmp_path: Path
) -> None:
    copy = ggufs.rewrite(GOLDEN / f"{name}.gguf", tmp_path / "copy.gguf")
    assert await llama_distance(copy, name, tmp_path) < BOUNDS[name]


@pytest.mark.parametrize("what", FILE_BREAKS)
async def test_a_broken_part_of_a_file_is_seen_on_llama_cpp(what: str, tmp_path: Path) -> None:
    name, change = FILE_BREAKS[what]
    broken = ggufs.rewrite(GOLDEN / golden(name)["model"], tmp_path / "broken.gguf", **change)  # type: ignore[arg-type]
    assert await llama_distance(broken, name, tmp_path) > 2 * BOUNDS[name]


async def test_a_merged_attention_matrix_is_served_by_every_engine(tmp_path: Path) -> None:
    """Both engines load the layout of jina-reranker-v2 and return the scores of the separate matrices; auto
    selects OpenVINO."""
    merged = ggufs.rewrite(
        GOLDEN / "xlmr-head.gguf", tmp_path / "merged.gguf", tensors=ggufs.merged_attention
    )
    assert await llama_distance(merged, "xlmr-head", tmp_path) < BOUNDS["xlmr-head"]
    settings = golden_settings("xlmr-head", tmp_path).model_copy(update={"model": (str(merged),)})
    async with Reranker(settings) as reranker:
        assert "OpenVINO" in reranker.state.engine.about  # type: ignore[union-attr]
