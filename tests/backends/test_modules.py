"""Models in sentence-transformers' layout: their values are those of CrossEncoder.predict, and each part
counts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import PAIRS
from test_goldens_can_fail import BOUND, SEEN, halves_swapped, next_rows, ones, tensor, zeros

import checkpoints
from rerankd.backends.openvino.encoder import Encoder
from rerankd.backends.worker.passes import Reading, padded
from rerankd.config import Settings
from rerankd.formats import model_files, tokenizer
from rerankd.service import Reranker
from support import GOLDEN, golden, inputs
from twins import write_wordpiece

Change = Callable[[Path], None]

SCALED = ("ettin-scaled", "modernbert-plain", "bert-normalized", "xlmr-residual")


def made(name: str, folder: Path) -> Path:
    """A golden model of modules; with a tokenizer that no test uses where it has none."""
    model = checkpoints.with_modules(name, folder / name)
    if not (model / "tokenizer.json").exists():
        write_wordpiece(model / "tokenizer.json")
    return model


def distance(model: Path) -> float:
    """How far the worst value is from the library's, each input alone and all in one padded batch."""
    cases = json.loads((model / "golden.json").read_text())["cases"]
    encoder = Encoder(model, "rank", threads=1, precision="f32")
    texts = [Reading(case["ids"], case["second"]) for case in cases]
    wanted = np.array([case["raw"] for case in cases])
    alone = np.array([encoder.forward(*padded([text]))[0, 0] for text in texts])
    assert np.abs(alone - encoder.forward(*padded(texts))[:, 0]).max() < BOUND
    return float(np.abs(alone - wanted).max())


@pytest.mark.parametrize("name", SCALED)
def test_modules_give_the_values_of_the_library(name: str, tmp_path: Path) -> None:
    found = distance(made(name, tmp_path))
    print(f"{name}: {found:.2g}")
    assert found < BOUND


def module(path: str, **changes: Any) -> Change:
    return lambda model: checkpoints.edit(model / path / "config.json", **changes)


def weights(path: str, part: str, change: Callable[[Any], Any]) -> Change:
    return lambda model: tensor(part, change)(model / path)


def without(number: int) -> Change:
    """The modules without one of them."""

    def apply(model: Path) -> None:
        modules = json.loads((model / "modules.json").read_text())
        del modules[number]
        (model / "modules.json").write_text(json.dumps(modules))

    return apply


TANH = "torch.nn.modules.activation.Tanh"
BREAKS: list[tuple[str, str, Change]] = [
    ("ettin-scaled", "the pooling", module("1_Pooling", pooling_mode="mean")),
    ("ettin-scaled", "the activation", module("2_Dense", activation_function=TANH)),
    ("ettin-scaled", "the dense layer", weights("2_Dense", "linear.weight", next_rows)),
    ("ettin-scaled", "the norm", weights("3_LayerNorm", "norm.weight", ones)),
    ("ettin-scaled", "the norm's bias", weights("3_LayerNorm", "norm.bias", zeros)),
    ("ettin-scaled", "no norm", without(3)),
    ("ettin-scaled", "the last layer", weights("4_Dense", "linear.weight", lambda row: row[:, ::-1])),
    ("ettin-scaled", "the last layer's bias", weights("4_Dense", "linear.bias", zeros)),
    ("ettin-scaled", "the body", tensor("attn.Wqkv.weight", halves_swapped)),
    ("modernbert-plain", "the pooling", module("1_Pooling", pooling_mode="cls")),
    ("modernbert-plain", "the last layer's bias", weights("2_Dense", "linear.bias", zeros)),
    ("bert-normalized", "the pooling", module("1_Pooling", pooling_mode="cls")),
    ("bert-normalized", "the dense layer's bias", weights("2_Dense", "linear.bias", zeros)),
    ("bert-normalized", "no normalisation", without(3)),
    ("xlmr-residual", "the first norm", weights("2_LayerNorm", "norm.bias", zeros)),
    ("xlmr-residual", "no first norm", without(2)),
    ("xlmr-residual", "no residual", module("4_Dense", use_residual=False)),
    ("xlmr-residual", "the activation", module("4_Dense", activation_function=TANH)),
    ("xlmr-residual", "the matrix of the residual", weights("5_Dense", "residual.weight", next_rows)),
    ("xlmr-residual", "the second norm", weights("6_LayerNorm", "norm.weight", ones)),
]


@pytest.mark.parametrize(
    ("name", "what", "change"), BREAKS, ids=[f"{name}: {what}" for name, what, _ in BREAKS]
)
def test_a_broken_part_is_seen(name: str, what: str, change: Change, tmp_path: Path) -> None:
    model = made(name, tmp_path)
    change(model)
    assert distance(model) > SEEN, what


def test_a_dropout_changes_nothing(tmp_path: Path) -> None:
    model = made("xlmr-residual", tmp_path)
    without(3)(model)
    assert distance(model) < BOUND


# The head of each class, as modules: its first layer, its last one, and the activation between them.
CLASSES = {
    "bert-pairs": ("bert.pooler.dense", "classifier", "Tanh"),
    "xlmr-head": ("classifier.dense", "classifier.out_proj", "Tanh"),
    "camembert": ("classifier.dense", "classifier.out_proj", "Tanh"),
    "deberta-v3": ("pooler.dense", "classifier", "GELU"),
    "electra": ("classifier.dense", "classifier.out_proj", "GELU"),
    "distilbert": ("pre_classifier", "classifier", "ReLU"),
    "gte": ("new.pooler.dense", "classifier", "Tanh"),
}


@pytest.mark.parametrize("name", CLASSES)
def test_the_head_of_a_class_as_modules_gives_the_same_values(name: str, tmp_path: Path) -> None:
    """So each class whose head is computed can have modules instead of it."""
    dense, output, activation = CLASSES[name]
    model = checkpoints.as_modules(name, tmp_path / name, dense, output, f"activation.{activation}")
    metadata = model_files.read(model)
    assert metadata.refusal is None
    typed = tokenizer.read(metadata).frame.first_typed is not None
    encoder = Encoder(model, "rank", threads=1, precision="f32")
    for case in [case for case in golden(name)["cases"] if case["fits"]][::10]:
        ids = case["ids"]
        text = Reading(ids, ids.index(ids[-1]) + 1 if typed else len(ids))
        assert encoder.forward(*padded([text]))[0, 0] == pytest.approx(case["raw"], abs=BOUND)


# ettin as a whole: texts in, and what predict of the library gives.


def settings(model: Path, home: Path) -> Settings:
    return Settings.model_validate(
        {"model": str(model), "home": home, "cache_entries": 0, "precision": "f32"}
    )


def by_query(key: str) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """The prompt and the cases that have such a value, by their query; blank documents are never scored."""
    kept = json.loads((GOLDEN / "modules" / "ettin" / "golden.json").read_text())
    cases = [case for case in kept["cases"] if key in case and PAIRS[case["id"]]["document"].strip()]
    assert len(cases) > 170
    cases.sort(key=lambda case: PAIRS[case["id"]]["query"])
    grouped = itertools.groupby(cases, key=lambda case: PAIRS[case["id"]]["query"])
    return kept["prompt"], {query: [*held] for query, held in grouped}


@pytest.mark.parametrize("key", ["raw", "prompted"])
async def test_ettin_gives_what_predict_gives(key: str, tmp_path: Path) -> None:
    """Also of pairs that are too long, for the documents are longer than the queries: both cut only these."""
    model = made("ettin", tmp_path)
    prompt, cases_of = by_query(key)
    if key == "prompted":
        saved = model / "config_sentence_transformers.json"
        checkpoints.edit(saved, prompts={"web": prompt}, default_prompt_name="web")
    worst = 0.0
    async with Reranker(settings(model, tmp_path)) as reranker:
        assert "OpenVINO" in reranker.state.engine.about  # type: ignore[union-attr]
        for query, cases in cases_of.items():
            documents = [PAIRS[case["id"]]["document"] for case in cases]
            result = await reranker.rerank(query, documents, raw_scores=True)
            found = {scored.index: scored.score for scored in result.results}
            worst = max(worst, *(abs(found[at] - case[key]) for at, case in enumerate(cases)))
        # The prompt takes no room from the document, however long the query is.
        long = await reranker.rerank("panda " * 2000, ["a bear " * 99], truncate_query=True)
        assert len(long.results) == 1 and long.tokens <= 256
    print(f"ettin, {key}: {worst:.2g}")
    assert worst < 1e-4


async def test_ettins_token_ids_are_those_of_its_body(tmp_path: Path) -> None:
    kept = {case["id"]: case["ids"] for case in golden("modernbert-head")["cases"] if case["fits"]}
    async with Reranker(settings(made("ettin", tmp_path), tmp_path)) as reranker:
        for name, ids in [*kept.items()][::5]:
            (one,) = await inputs(reranker, PAIRS[name]["query"], [PAIRS[name]["document"]])
            assert one.whole.tolist() == ids, name


async def test_a_score_is_the_sigmoid_of_what_is_published(tmp_path: Path) -> None:
    async with Reranker(settings(made("ettin", tmp_path), tmp_path)) as reranker:
        raw = (await reranker.rerank("a panda", ["the panda is a bear"], raw_scores=True)).results[0].score
        score = (await reranker.rerank("a panda", ["the panda is a bear"])).results[0].score
    assert score == pytest.approx(1 / (1 + np.exp(-raw)), abs=1e-6)
