"""Recipes of causal rerankers: one label, scaled sigmoids, optional instructions, and templates in files."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rerankd.config import ScoringSettings
from rerankd.domain import Normalization, Recipe
from rerankd.errors import ConfigError
from rerankd.hub.inspect import describe
from rerankd.recipes.explanation import explain
from rerankd.recipes.partial_recipe import PartialRecipe
from test_resolve import CHAT, PROMPT, QWEN3_FILE_TEMPLATE, QWEN3_PROMPT, qwen, resolution_of

ZERANK = qwen(name="Zerank 2", blocks=36, width=2560)
TEMPLATE = "<|im_start|>{query}|{document}<|im_end|>"
INSTRUCT_TEMPLATE = "<|im_start|>{instruction}: {query}|{document}<|im_end|>"
RANKED = {"pooling": "rank", "output_labels": ("yes", "no"), "has_cls_output": True, "cls_output_rows": 2}


def test_zerank_is_scored_by_one_label_and_a_scaled_sigmoid() -> None:
    resolved = resolution_of(ZERANK)
    recipe = resolved.require()
    assert (recipe.labels, recipe.normalization) == (("Yes",), Normalization("sigmoid", logit_sigma=5))
    assert explain(recipe).endswith("raw score is logit('Yes'); the score is sigmoid(raw / 5)")
    assert "logit_sigma: 5 (catalog)" in describe(ZERANK, resolved)
    assert resolved.warnings == ()


def test_settings_override_the_scale() -> None:
    found = resolution_of(ZERANK, PartialRecipe(logit_mean=-2, logit_sigma=1)).require()
    assert found.normalization == Normalization("sigmoid", logit_mean=-2, logit_sigma=1)
    assert explain(found).endswith("the score is sigmoid(raw + 2)")
    assert (found.sources["logit_mean"], found.sources["logit_sigma"]) == ("settings", "settings")
    both = Normalization("sigmoid", logit_mean=2.65, logit_sigma=4)
    assert both.argument == "(raw - 2.65) / 4" and Normalization("sigmoid").argument == "raw"


def test_other_labels_have_no_scale_of_the_catalog() -> None:
    other = resolution_of(ZERANK, PartialRecipe(labels=("Yes", "No"))).require()
    assert other.normalization == Normalization("sigmoid")
    same = resolution_of(ZERANK, PartialRecipe(labels=("Yes",))).require()
    assert same.normalization.logit_sigma == 5


def test_the_scale_is_for_the_sigmoid_only() -> None:
    with pytest.raises(ConfigError, match="are for normalization = sigmoid, but this model has identity"):
        resolution_of(ZERANK, PartialRecipe(normalization="identity", logit_sigma=2))
    identity = resolution_of(ZERANK, PartialRecipe(normalization="identity")).require()
    assert identity.normalization == Normalization("identity") and "logit_sigma" not in identity.sources
    with pytest.raises(ValueError, match="logit_sigma"):
        ScoringSettings(logit_sigma=0)


def test_one_label_in_the_settings() -> None:
    assert resolution_of(CHAT, replace(PROMPT, labels=("Yes",))).require().labels == ("Yes",)
    assert ScoringSettings.model_validate({"labels": ["Yes"]}).labels == ("Yes",)
    for labels in ([], ["a", "b", "c"]):
        with pytest.raises(ValueError, match="labels"):
            ScoringSettings.model_validate({"labels": labels})
    for wrong in ("Nope", ""):
        with pytest.raises(ConfigError, match="Set one single token or two different ones"):
            resolution_of(CHAT, replace(PROMPT, labels=(wrong,)))
    assert "probability" not in explain(Recipe("causal_lm", 512, Normalization("sigmoid"), labels=("a",)))


def test_an_optional_instruction_needs_no_default() -> None:
    template = "{?instruction}{instruction}: {/instruction}{query}{document}"
    assert resolution_of(CHAT, replace(PROMPT, template=template)).require().instruction == ""
    with pytest.raises(ConfigError, match="without its counterpart"):
        resolution_of(CHAT, replace(PROMPT, template="{?instruction}{query}{document}"))


# llama.cpp's two keys of a rerank template.


def test_the_instruct_template_of_a_file_has_its_default_from_the_plain_one() -> None:
    plain = INSTRUCT_TEMPLATE.replace("{instruction}", "Find code")
    found = qwen(
        name="My Reranker", rerank_template=plain, rerank_instruct_template=INSTRUCT_TEMPLATE, **RANKED
    )
    recipe = resolution_of(found).require()
    assert (recipe.template, recipe.instruction) == (INSTRUCT_TEMPLATE, "Find code")
    assert (recipe.sources["template"], recipe.sources["instruction"]) == ("file", "file")


def test_an_instruct_template_that_differs_is_not_used() -> None:
    found = qwen(
        name="My Reranker", rerank_template=TEMPLATE, rerank_instruct_template=INSTRUCT_TEMPLATE, **RANKED
    )
    recipe = resolution_of(found).require()
    assert (recipe.template, recipe.instruction) == (TEMPLATE, "")


def test_an_instruct_template_without_a_default_is_refused_with_the_settings() -> None:
    found = qwen(name="My Reranker", rerank_instruct_template=INSTRUCT_TEMPLATE, **RANKED)
    refusal = resolution_of(found).refusal
    assert refusal is not None and "does not define its {instruction}" in refusal.reason
    assert INSTRUCT_TEMPLATE in refusal.lines and 'instruction = ""' in refusal.lines


@pytest.mark.parametrize("plain", ["", QWEN3_FILE_TEMPLATE])
def test_qwen3_s_instruct_template_is_its_prompt(plain: str) -> None:
    named = qwen(name="Qwen3 Reranker 0.6B", rerank_template=plain, rerank_instruct_template=QWEN3_PROMPT)
    resolved = resolution_of(named)
    assert resolved.require().template == QWEN3_PROMPT and resolved.warnings == ()
    if plain:
        unnamed = qwen(rerank_template=plain, rerank_instruct_template=QWEN3_PROMPT, **RANKED)
        assert resolution_of(unnamed).require().template == QWEN3_PROMPT
