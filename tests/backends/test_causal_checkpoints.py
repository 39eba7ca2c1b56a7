"""Causal models in safetensors: recipes from sentence-transformers' files or the settings, and scores."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from breaks import config, next_rows, ones, tensor, zeros
from cases import PAIRS
from test_causal import BOUND, SEEN, distance

import checkpoints
from rerankd.config import Settings
from rerankd.domain import Recipe, Refusal
from rerankd.errors import ConfigError
from rerankd.formats import model_files
from rerankd.recipes import catalog
from rerankd.recipes.explanation import explain
from rerankd.recipes.partial_recipe import PartialRecipe
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.resolve import resolve
from rerankd.service import Reranker
from support import GOLDEN, golden

NAME = "qwen3-headless"


def resolved(model: Path, settings: PartialRecipe | None = None) -> Resolution:
    return resolve(model_files.read(model), catalog.known(), settings or PartialRecipe())


async def scores(model: Path, home: Path) -> tuple[list[float], list[float]]:
    """The scores of golden pairs, with no other settings than the path; and the golden ones."""
    settings = Settings.model_validate(
        {"model": str(model), "home": home, "cache_entries": 0, "precision": "f32"}
    )
    cases = [case for case in golden(NAME)["cases"] if case["fits"] and PAIRS[case["id"]]["document"].strip()]
    found = []
    async with Reranker(settings) as reranker:
        for case in cases[::8]:
            pair = PAIRS[case["id"]]
            result = await reranker.rerank(pair["query"], [pair["document"]], raw_scores=True)
            assert result.warnings == ()
            found.append(result.results[0].score)
    return found, [case["raw"] for case in cases[::8]]


async def test_the_files_of_sentence_transformers_alone_give_the_golden_scores(tmp_path: Path) -> None:
    model = checkpoints.causal(tmp_path, *golden(NAME)["label_ids"])
    recipe = resolved(model).require()
    assert recipe.labels == ("yes", "no")
    assert (recipe.template, recipe.instruction) == (golden(NAME)["template"], golden(NAME)["instruction"])
    assert {recipe.sources[part] for part in ("template", "labels", "instruction")} == {"file"}
    found, wanted = await scores(model, tmp_path / "home")
    assert found == pytest.approx(wanted, abs=BOUND)


async def test_with_one_label_the_score_is_its_logit(tmp_path: Path) -> None:
    alone = []
    for at, label in enumerate(golden(NAME)["label_ids"]):
        model = checkpoints.causal(tmp_path / str(at), label)
        recipe = resolved(model).require()
        assert recipe.labels == (("yes", "no")[at],)
        assert f"its raw score is logit({recipe.labels[0]!r})" in explain(recipe)
        found, wanted = await scores(model, tmp_path / "home")
        alone.append(found)
    differences = [first - second for first, second in zip(*alone, strict=True)]
    assert differences == pytest.approx(wanted, abs=2 * BOUND)


def with_head(folder: Path) -> Path:
    """The golden checkpoint as Qwen3ForSequenceClassification. The row of its head is the difference of the
    labels' rows, so transformers' scores of it are the golden ones."""
    model = checkpoints.copy(NAME, folder / "judge", architectures=["Qwen3ForSequenceClassification"])
    held = checkpoints.read(model / "model.safetensors")
    kind, shape, data = held["model.embed_tokens.weight"]
    first, second = np.frombuffer(data, np.float32).reshape(shape)[golden(NAME)["label_ids"]]
    held["score.weight"] = kind, [1, shape[1]], (first - second).tobytes()
    checkpoints.write(model / "model.safetensors", held)
    return model


async def test_a_head_of_one_label_is_scored_without_labels(tmp_path: Path) -> None:
    model, values = with_head(tmp_path), golden(NAME)
    assert isinstance(resolved(model).outcome, Refusal), "no source defines its prompt"
    settings = PartialRecipe(template=values["template"], instruction=values["instruction"])
    recipe = resolved(model, settings).require()
    assert recipe.labels == () and "the logit of its rank head" in explain(recipe)
    with pytest.raises(ConfigError, match="Remove labels"):
        resolved(model, replace(settings, labels=("yes", "no")))
    assert distance(model, NAME, labels=()) < BOUND
    broken = checkpoints.copy(NAME, tmp_path / "other")
    shutil.copytree(model, broken, dirs_exist_ok=True)
    tensor("score.weight", lambda held: held[:, ::-1])(broken)
    assert distance(broken, NAME, labels=()) > SEEN


async def test_a_head_with_a_chat_template_needs_no_settings(tmp_path: Path) -> None:
    model = checkpoints.causal(tmp_path, *golden(NAME)["label_ids"])
    shutil.copytree(with_head(tmp_path / "head"), model, dirs_exist_ok=True)
    checkpoints.write_modules(model, ["Transformer"])
    checkpoints.edit(
        model / "sentence_bert_config.json",
        transformer_task="sequence-classification",
        module_output_name="scores",
    )
    assert resolved(model).require().labels == ()
    found, wanted = await scores(model, tmp_path / "home")
    assert found == pytest.approx(wanted, abs=BOUND)


def test_without_a_prompt_the_settings_that_are_missing_are_named(tmp_path: Path) -> None:
    model = checkpoints.copy(NAME, tmp_path / "model")
    outcome = resolved(model).outcome
    assert isinstance(outcome, Refusal) and 'method = "causal_lm"' in outcome.lines
    found = resolved(model, PartialRecipe(template="{query} {document}", labels=("yes", "no"))).outcome
    assert isinstance(found, Recipe) and found.max_length == 512


def test_settings_that_do_not_fit_are_named(tmp_path: Path) -> None:
    model = checkpoints.copy(NAME, tmp_path / "model")
    with pytest.raises(ConfigError, match="not a single token"):
        resolved(model, PartialRecipe(template="{query} {document}", labels=("yes", "unheard-of")))
    with pytest.raises(ConfigError, match="logits of its labels"):
        resolved(model, PartialRecipe(method="cross_encoder"))


def test_a_chat_template_that_is_not_understood_is_refused(tmp_path: Path) -> None:
    model = checkpoints.causal(tmp_path, *golden(NAME)["label_ids"])
    (model / "chat_template.jinja").write_text("{{ messages[0].content | upper }}{{ messages[1].content }}")
    outcome = resolved(model).outcome
    assert isinstance(outcome, Refusal) and "chat template" in outcome.reason


def test_a_head_with_more_labels_is_refused(tmp_path: Path) -> None:
    model = with_head(tmp_path)
    tensor("score.weight", lambda held: np.concatenate((held, held)))(model)
    outcome = resolved(model).outcome
    assert isinstance(outcome, Refusal) and "cls.output.weight has the shape" in outcome.reason


REFUSED = {
    "hidden_act": config(hidden_act="gelu"),
    "window": config(layer_types=["sliding_attention", "full_attention"], use_sliding_window=False),
    "biases": config(attention_bias=True),
    "yarn": config(rope_scaling={"rope_type": "yarn", "factor": 4.0}),
    "required": config(num_key_value_heads=1),
    "output.weight is missing": config(tie_word_embeddings=False),
    "layer_types": config(num_hidden_layers=3),
    "attn_q_norm.weight is missing": config(num_hidden_layers=3, layer_types=["full_attention"] * 3),
}


@pytest.mark.parametrize("words", REFUSED)
def test_a_configuration_that_is_not_understood_is_refused(words: str, tmp_path: Path) -> None:
    model = checkpoints.causal(tmp_path, *golden(NAME)["label_ids"])
    REFUSED[words](model)
    outcome = resolved(model).outcome
    assert isinstance(outcome, Refusal)
    assert words.split()[0] in outcome.reason or "missing" in outcome.reason, outcome.reason


BREAKS: dict[str, tuple[str, Any]] = {
    "the rope base": (NAME, config(rope_parameters={"rope_type": "default", "rope_theta": 500000.0})),
    "the norms' epsilon": (NAME, config(rms_norm_eps=1e-3)),
    "the norm of queries": (NAME, tensor("q_norm.weight", ones)),
    "the norm of keys": (NAME, tensor("k_norm.weight", ones)),
    "the last norm": (NAME, tensor("model.norm.weight", ones)),
    "the gate": (NAME, tensor("gate_proj.weight", next_rows)),
    "the value's bias": ("qwen2-labels", tensor("v_proj.bias", zeros)),
    "the key": ("qwen2-labels", tensor("k_proj.weight", next_rows)),
}


@pytest.mark.parametrize("name", [NAME, "qwen2-labels"])
def test_a_checkpoint_has_the_scores_of_transformers(name: str) -> None:
    assert distance(GOLDEN / name, name) < BOUND


@pytest.mark.parametrize("what", BREAKS)
def test_a_broken_part_of_a_checkpoint_is_seen(what: str, tmp_path: Path) -> None:
    name, change = BREAKS[what]
    broken = checkpoints.copy(name, tmp_path / "broken")
    change(broken)
    assert distance(broken, name) > SEEN
