"""The recipe of a late-interaction model: from its files and settings, or refused by what is missing."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

import checkpoints
import late
from rerankd.api.app import create_app
from rerankd.config import ScoringSettings, Settings
from rerankd.domain import Refusal
from rerankd.errors import ConfigError
from rerankd.formats import late_interaction, model_files
from rerankd.formats.transformer_module import NotUnderstood
from rerankd.hub.inspect import describe, describe_json
from rerankd.interaction import Interaction
from rerankd.recipes import catalog
from rerankd.recipes.partial_recipe import PartialRecipe
from rerankd.recipes.recipe_section import section, to_fill_in
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.resolve import resolve
from support import GOLDEN, running

MODULES = "modules.json"


def resolved(model: Path, **settings: Any) -> Resolution:
    values = ScoringSettings.model_validate(settings).model_dump()
    return resolve(model_files.read(model), catalog.known(), PartialRecipe(**values))


def refusal(model: Path, **settings: Any) -> Refusal:
    found = resolved(model, **settings).refusal
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("name", "expected", "length"),
    [
        ("pylate-attended", Interaction(32, "[Q] ", "[D] ", 32, "[MASK]", True), 60),
        ("encoder-bert", Interaction(24, skiplist=(",", ".")), 50),
        ("encoder-modernbert", Interaction(256, "[Q] ", "[D] ", 16, "[MASK]", True, (",", ".")), 256),
    ],
)
def test_lengths_markers_and_expansion_come_from_the_files(
    name: str, expected: Interaction, length: int, tmp_path: Path
) -> None:
    found = resolved(late.build(name, tmp_path))
    recipe = found.require()
    assert (recipe.method, recipe.interaction, recipe.max_length) == ("late_interaction", expected, length)
    assert {recipe.sources[part] for part in ("query_length", "query_marker", "max_length")} == {"file"}
    assert found.warnings == ()


def test_the_newer_files_of_a_model_with_both_layouts_count(tmp_path: Path) -> None:
    model = late.build("stanford-bert", tmp_path)
    (model / MODULES).write_text('[{"idx": 0, "name": "0", "path": "0_Transformer", "type": "pylate.x.Y"}]')
    assert resolved(model).require().max_length == late.ARTIFACT["doc_maxlen"]
    checkpoints.write_modules(
        model, ("Transformer", "Dense")
    )  # nothing declares late interaction beside them
    assert resolved(model).require().max_length == late.ARTIFACT["doc_maxlen"]
    other = late.build("encoder-bert", tmp_path)
    for file in (MODULES, "config_sentence_transformers.json", "sentence_bert_config.json"):
        (model / file).write_text((other / file).read_text())
    for folder in ("1_Dense", "2_MultiVectorMask", "3_Normalize"):
        (other / folder).rename(model / folder)
    recipe = resolved(model).require()
    assert (recipe.max_length, recipe.query_prefix) == (50, "what is ")


@pytest.mark.parametrize(
    ("name", "file", "missing", "supplied"),
    [
        (
            "stanford-bert",
            late.ARTIFACT_FILE,
            ("query_maxlen",),
            {"query_length": 32, "expansion_length": 32},
        ),
        ("stanford-bert", late.ARTIFACT_FILE, ("doc_maxlen",), {"max_length": 48}),
        ("stanford-bert", late.ARTIFACT_FILE, ("doc_token_id",), {"document_marker": "[unused1]"}),
        ("pylate-modernbert", late.PYLATE_FILE, ("document_length",), {"max_length": 60}),
        ("pylate-modernbert", late.PYLATE_FILE, ("query_prefix",), {"query_marker": "[Q] "}),
    ],
)
def test_a_missing_fact_is_named_and_settings_supply_it(
    name: str, file: str, missing: tuple[str, ...], supplied: dict[str, Any], tmp_path: Path
) -> None:
    model = late.build(name, tmp_path)
    whole = resolved(model).require()
    checkpoints.edit(model / file, **dict.fromkeys(missing))
    refused = refusal(model)
    for setting in supplied:
        assert setting in refused.reason and f"{setting} = " in refused.lines
    assert resolved(model, **supplied).require() == whole


def test_without_artifact_metadata_every_fact_is_asked_for(tmp_path: Path) -> None:
    model = late.build("stanford-bert", tmp_path)
    whole = resolved(model).require()
    (model / late.ARTIFACT_FILE).unlink()
    wanted = "query_marker, document_marker, query_length, max_length, expansion_length"
    assert refusal(model).reason.endswith(f"do not define {wanted}")
    found = resolved(
        model,
        query_marker="[unused0]",
        document_marker="[unused1]",
        query_length=32,
        max_length=48,
        expansion_length=32,
        skiplist=late.PUNCTUATION,
    )
    assert found.require() == whole


@pytest.mark.parametrize(
    ("name", "file", "change", "reason"),
    [
        ("stanford-bert", late.ARTIFACT_FILE, {"query_maxlen": "32"}, "'32' as query_maxlen"),
        ("stanford-bert", late.ARTIFACT_FILE, {"doc_maxlen": -1}, "-1 as doc_maxlen"),
        ("stanford-bert", late.ARTIFACT_FILE, {"query_maxlen": 400}, "query_length is 400"),
        ("stanford-bert", late.ARTIFACT_FILE, {"similarity": "l2"}, "similarity 'l2'"),
        ("stanford-bert", late.ARTIFACT_FILE, {"query_token_id": "[Query]"}, "'[Query]"),
        ("stanford-bert", late.ARTIFACT_FILE, {"query_token_id": 7}, "7 as query_token_id"),
        ("stanford-bert", "config.json", {"model_type": "t5", "vocab_size": None}, "its class is HF_ColBERT"),
        ("pylate-modernbert", late.PYLATE_FILE, {"query_length": True}, "True as query_length"),
        ("pylate-modernbert", late.PYLATE_FILE, {"skiplist_words": "!"}, "skiplist_words '!'"),
        ("pylate-modernbert", "1_Dense/config.json", {"out_features": 25}, "needs linear.weight"),
        ("pylate-modernbert", "1_Dense/config.json", {"activation_function": "a.B"}, "the activation a.B"),
        ("encoder-bert", "2_MultiVectorMask/config.json", {"skiplist_tasks": ["query"]}, "other tokens"),
        ("encoder-bert", "2_MultiVectorMask/config.json", {"keep_only_token_ids": [1]}, "other tokens"),
        ("encoder-modernbert", "sentence_bert_config.json", {"query_expansion": {"length": 9}}, "length"),
        ("encoder-modernbert", "sentence_bert_config.json", {"do_lower_case": True}, "do_lower_case"),
    ],
)
def test_a_file_that_says_something_else_is_refused(
    name: str, file: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = late.build(name, tmp_path)
    checkpoints.edit(model / file, **change)
    assert reason in refusal(model).reason


def test_a_projection_that_is_missing_is_refused(tmp_path: Path) -> None:
    model = late.build("stanford-bert", tmp_path)
    tensors = checkpoints.read(model / "model.safetensors")
    del tensors["linear.weight"]
    checkpoints.write(model / "model.safetensors", tensors)
    assert "projection (linear.weight) is missing" in refusal(model).reason
    other = late.build("pylate-modernbert", tmp_path)
    (other / "1_Dense" / "model.safetensors").unlink()
    assert "1_Dense has no model.safetensors" in refusal(other).reason


@pytest.mark.parametrize("kind", ["ModernBertDecoder", "Qwen3Model"])
def test_a_body_that_is_no_known_encoder_is_refused_by_its_class(kind: str, tmp_path: Path) -> None:
    model = late.build("pylate-modernbert", tmp_path)
    checkpoints.edit(model / "config.json", architectures=[kind])
    assert f"its class is {kind}" in refusal(model).reason


def test_no_settings_make_a_gguf_file_score_by_late_interaction() -> None:
    """Without its projection, the vectors would be others."""
    values = {
        "query_length": 32,
        "expansion_length": 0,
        "query_marker": "",
        "document_marker": "",
        "max_length": 64,
    }
    found = refusal(GOLDEN / "bert-embedder.gguf", method="late_interaction", **values)
    assert "GGUF file lacks what late interaction needs" in found.reason and not found.lines


def test_settings_of_other_methods_are_errors(tmp_path: Path) -> None:
    model = late.build("stanford-bert", tmp_path)
    for wrong in ({"pooling": "mean"}, {"method": "embedding"}, {"normalization": "sigmoid"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            resolved(model, **wrong)
    with pytest.raises(ConfigError, match="query_length is for method = late_interaction"):
        resolve(
            model_files.read(checkpoints.copy("bert-pairs", tmp_path / "head")),
            catalog.known(),
            PartialRecipe(query_length=8),
        )


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 600) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
KEYS = (*late.ARTIFACT, *late.PYLATE, "query_expansion", "mask_token", "model_type", "skiplist_tasks")


@given(
    values=st.dictionaries(st.sampled_from(KEYS), JSON), other=st.dictionaries(st.sampled_from(KEYS), JSON)
)
def test_hostile_values_are_understood_or_refused(values: dict[str, Any], other: dict[str, Any]) -> None:
    for read in (
        lambda: late_interaction.of_artifact(values, other),
        lambda: late_interaction.of_modules(values, other, values, other),
        lambda: late_interaction.of_modules(values, other, None, other),
    ):
        try:
            found = read()
        except NotUnderstood:
            continue
        for length in (found.query_length, found.document_length, found.expansion_length):
            assert length is None or 0 <= length <= 2**20
        assert all(isinstance(word, str) for word in found.skiplist)


def test_inspect_and_the_section_show_every_part(tmp_path: Path) -> None:
    model = late.build("pylate-modernbert", tmp_path)
    metadata, found = model_files.read(model), resolved(model)
    text = describe(metadata, found)
    for line in (
        'query_marker: "[Q] "',
        "query_length: 32",
        "max_length: 60 tokens for a document",
        "MaxSim",
    ):
        assert line in text
    said = describe_json(metadata, found)
    assert json.loads(json.dumps(said["recipe"]))["interaction"]["expansion_token"] == "[MASK]"
    toml = section(found, found.require(), "hf:a/b")
    for line in ('query_marker = "[Q] "', "attends_to_expansion = false", 'expansion_token = "[MASK]"'):
        assert line in toml


def test_a_late_interaction_model_answers_over_http_with_product_defaults(tmp_path: Path) -> None:
    """Ranks, scores from 0 to 1, chunks, truncation, duplicates and the status of what is kept."""
    model = late.build("pylate-modernbert", tmp_path)
    settings = Settings(model=(str(model),), home=tmp_path / "home")
    long = "the bread rises for an hour " * 40
    documents = ["Bread needs flour, water and time.", long, "The train leaves at nine.", long, "  "]
    with running(create_app(settings)) as url, httpx.Client(base_url=url, timeout=60) as client:
        body = {"query": "how long does bread rise? " * 8, "documents": documents}
        answer = client.post("/v1/rerank", json=body).json()
        scores = {row["index"]: row["relevance_score"] for row in answer["results"]}
        assert scores[1] == scores[3] and scores[4] == 0 and all(0 <= one <= 1 for one in scores.values())
        assert len({*scores.values()}) == 4
        warnings = " ".join(answer["meta"]["warnings"])
        assert "The query was truncated to 29 tokens" in warnings and "documents 1, 3" in warnings
        raw = client.post("/v1/rerank", json=body | {"raw_scores": True}).json()
        by_index = {row["index"]: row["relevance_score"] for row in raw["results"]}
        assert by_index[0] == pytest.approx(32 * scores[0], rel=1e-5)
        strict = client.post("/v1/rerank", json=body | {"truncate_query": False})
        assert strict.status_code == 400 and "may use at most 29" in strict.text
        chunked = client.post("/v1/rerank", json=body | {"max_chunks_per_doc": 4, "query": "bread"}).json()
        assert not [one for one in chunked["meta"]["warnings"] if "could not" in one]
        (status,) = client.get("/v1/status").json()["models"]
        kept = status["engine"]["document_vectors"]
        assert kept["documents"] >= 4 and kept["misses"] >= kept["documents"] and kept["size_bytes"] > 0
        assert status["method"] == "late_interaction"
        metrics = client.get("/metrics").text
        name = 'model="pylate-modernbert"'
        assert f"rerankd_document_vectors_bytes{{{name}}} {float(kept['size_bytes'])}" in metrics
        assert f"rerankd_document_vectors_hits{{{name}}}" in metrics


def test_the_printed_section_alone_gives_the_same_recipe(tmp_path: Path) -> None:
    model = late.build("pylate-modernbert", tmp_path)
    found = resolved(model)
    ((_, values),) = tomllib.loads(section(found, found.require(), str(model)))["models"].items()
    assert values.pop("ref") == str(model.absolute())
    assert resolved(model, **values).require() == found.require()


def test_a_section_to_fill_in_explains_the_missing_parts(tmp_path: Path) -> None:
    model = late.build("stanford-bert", tmp_path)
    (model / late.ARTIFACT_FILE).unlink()
    text = to_fill_in(resolved(model), str(model), "new.toml")
    assert "# All lengths are in tokens" in text
    ((_, values),) = tomllib.loads(text)["models"].items()
    del values["ref"]
    with pytest.raises(ValueError, match="query_length"):
        ScoringSettings(**values)
    numbers = {name: 32 for name, one in values.items() if one == -1}
    assert "'FILL IN' is not a token" in refusal(model, **values | numbers).reason
