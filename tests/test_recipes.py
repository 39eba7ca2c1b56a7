"""No model gets another model's recipe: all kinds of files are tested, and all models of the catalog."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import ggufs
import hollow
import twins
from kinds import KINDS, QWEN3_TEMPLATE, YES_NO, Kind
from rerankd import config
from rerankd.domain import Normalization
from rerankd.errors import ConfigError, ModelFileError, Unscorable
from rerankd.formats import model_files, safetensors_metadata
from rerankd.hub.inspect import describe, describe_json
from rerankd.recipes import catalog
from rerankd.recipes.catalog import Entry
from rerankd.recipes.partial_recipe import PartialRecipe
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.resolve import resolve
from rerankd.service import Reranker
from rerankd.serving.prepare_model import prepare
from support import GOLDEN, inputs, rerankd
from twins import Twin

# Served from their checkpoints only, because GGUF can't represent them: how to write one, from its number of
# layers and its width.
FOLDERS = dict.fromkeys(("ms-marco-MiniLM-L6-v2", "ms-marco-MiniLM-L12-v2"), twins.write_bert_folder)
FOLDERS |= {
    f"ettin-reranker-{size}-v1": twins.write_ettin_folder
    for size in ("17m", "32m", "68m", "150m", "400m", "1b")
}
FOLDERS["llama-nemotron-rerank-1b-v2"] = hollow.nemotron
FOLDERS["jina-reranker-m0"] = hollow.jina_m0
FOLDERS |= dict.fromkeys(
    ("answerai-colbert-small-v1", "colbertv2.0"), hollow.late_interaction("stanford-bert")
)
FOLDERS["GTE-ModernColBERT-v1"] = hollow.late_interaction("pylate-modernbert")
# The golden encoder of the same architecture, by that.
CHECKPOINTS = {"deberta-v2": "deberta-v3", "new": "gte"}
ENTRIES = catalog.known().entries


def resolution_of(path: Path, settings: PartialRecipe | None = None) -> Resolution:
    return resolve(model_files.read(path), catalog.known(), settings or PartialRecipe())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.what)
def test_each_kind_of_file_gets_its_own_recipe_or_is_refused(kind: Kind, tmp_path: Path) -> None:
    path = kind.write(tmp_path)
    if not kind.is_served:
        with pytest.raises(ModelFileError, match=re.escape(kind.becomes)):
            resolution_of(path).require()
        return
    scoring = resolution_of(path).require()
    assert scoring.method == kind.becomes
    if kind.becomes == "causal_lm":
        entry = catalog.known().find(kind.asked)
        assert scoring.template == (entry.template if entry is not None else "") or not kind.asked
        assert not kind.asked or scoring.instruction == (entry.instruction if entry is not None else "")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_every_model_of_the_catalog_gets_the_recipe_of_its_entry(entry: Entry, tmp_path: Path) -> None:
    for at, name in enumerate(entry.match.names):
        folder = tmp_path / str(at)
        sizes = entry.match.block_count, entry.match.embedding_length
        if (own := CHECKPOINTS.get(next(iter(entry.match.architectures), ""))) is not None:
            path = hollow.write(own, folder / name, *sizes)
        elif entry.name in FOLDERS:
            path = FOLDERS[entry.name](folder / name, *sizes)
        else:
            folder.mkdir()
            path = twins.of_entry(entry, name).write(folder / "model.gguf")
        resolved = resolution_of(path)
        assert resolved.entry is not None and resolved.entry.name in _namesakes(entry), name
        if entry.refused:
            assert resolved.refusal is not None and resolved.entry.refused in resolved.refusal.reason
            continue
        scoring = resolved.require()
        recipe = (scoring.method, scoring.template, scoring.labels, scoring.instruction)
        assert recipe == (entry.method, entry.template, entry.labels, entry.instruction)
        if entry.low is None or entry.high is None:
            is_logit = entry.method in ("cross_encoder", "causal_lm")
            assert scoring.normalization.name == ("sigmoid" if is_logit else "affine")
        else:
            assert scoring.normalization == Normalization("affine", entry.low, entry.high)
        prefixes = (scoring.query_prefix, scoring.document_prefix)
        assert prefixes == (entry.query_prefix, entry.document_prefix)
        assert scoring.pooling == ("rank" if entry.method == "cross_encoder" else entry.pooling)
        assert resolved.warnings == ()


def _namesakes(entry: Entry) -> set[str]:
    """The entries that a file with this name may be recognised as."""
    return {other.name for other in ENTRIES if other.match.names[-1] in entry.match.names} | {entry.name}


SIZED = [entry for entry in ENTRIES if entry.method and not entry.match.any_size]


@pytest.mark.parametrize("entry", SIZED, ids=lambda entry: entry.name)
def test_a_namesake_of_another_size_is_not_recognised(entry: Entry, tmp_path: Path) -> None:
    twin = twins.of_entry(entry)
    other = Twin(twin.name, twin.arch, twin.blocks + 1, twin.width, head=twin.head)
    assert resolution_of(other.write(tmp_path / "model.gguf")).entry in (None, *_refused(entry))


def _refused(entry: Entry) -> list[Entry]:
    own = {*entry.match.architectures}
    return [other for other in ENTRIES if other.refused and own & {*other.match.architectures}]


REFUSED_FOR_A_RECIPE = [kind for kind in KINDS if not kind.is_served and isinstance(kind.twin, Twin)]


@pytest.mark.parametrize("kind", REFUSED_FOR_A_RECIPE, ids=lambda kind: kind.what)
def test_with_the_printed_settings_a_refused_model_is_served(kind: Kind, tmp_path: Path) -> None:
    """After the values from its model card are filled in."""
    path = kind.write(tmp_path)
    refusal = resolution_of(path)
    lines = refusal.settings()
    if not lines:
        return
    assert lines in describe(model_files.read(path), refusal)
    assert describe_json(model_files.read(path), refusal)["settings"] == lines
    unfilled = _scoring(lines)
    filled = {
        **unfilled,
        **{key: value for key, value in _CARD.items() if key in unfilled and not any(unfilled[key])},
    }
    with pytest.raises(ModelFileError, match=re.escape(lines)):
        refusal.require()
    assert resolution_of(path, PartialRecipe(**_tuples(filled))).require().method == filled["method"]


# The values that the user fills in.
_CARD = {"template": "{query} {document}", "labels": ["yes", "no"], "pooling": "mean"}


def _scoring(lines: str) -> dict[str, Any]:
    """The scoring settings in the only section of the lines."""
    (section,) = tomllib.loads(lines)["models"].values()
    return {key: value for key, value in section.items() if key != "ref"}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}


def test_the_printed_settings_contain_the_defaults_of_rerankd_0_1(tmp_path: Path) -> None:
    reranker = Twin("Lychee Rerank").write(tmp_path / "lychee.gguf")
    lines = resolution_of(reranker).settings()
    head, _, instead = lines.partition("# Or these instead")
    before = head[: head.index("template = ")] + instead.partition("\n")[2].replace("# ", "")
    loaded = config.load(before, {}, {}).models["lychee"]
    overrides = PartialRecipe(**_tuples({k: v for k, v in _scoring(before).items()}))
    scoring = resolution_of(reranker, overrides).require()
    assert scoring.template.replace("{instruction}", scoring.instruction) == QWEN3_TEMPLATE
    assert (scoring.labels, loaded.ref) == (YES_NO, str(reranker))
    headless = Twin("Bge M3", "bert", 24, pooling="cls").write(tmp_path / "bge-reranker-v2-m3.gguf")
    scoring = resolution_of(headless, PartialRecipe(**_scoring(resolution_of(headless).settings()))).require()
    assert (scoring.method, scoring.pooling) == ("embedding", "cls")


def test_printed_settings_with_empty_values_are_an_error(tmp_path: Path) -> None:
    reranker = Twin("Lychee Rerank").write(tmp_path / "lychee.gguf")
    overrides = PartialRecipe(**_tuples(_scoring(resolution_of(reranker).settings())))
    with pytest.raises(ConfigError, match="exactly once"):
        resolution_of(reranker, overrides)
    unpooled = Twin("Model", "bert", 24).write(tmp_path / "model.gguf")
    with pytest.raises(ConfigError, match="pooling"):
        config.load(resolution_of(unpooled).settings(), {}, {})


def test_a_model_refused_as_gguf_is_served_from_safetensors(tmp_path: Path) -> None:
    folder = twins.write_bert_folder(tmp_path / "ms-marco-TinyBERT-L2-v2", 2, 120)
    assert resolve(safetensors_metadata.read(folder), catalog.known()).require().method == "cross_encoder"


def test_the_printed_section_applies_to_the_model(tmp_path: Path) -> None:
    """The user copies it, fills it in, and names the model by its path or by the section's name."""
    path = Twin("Lychee Rerank").write(tmp_path / "lychee.gguf")
    refused = rerankd("inspect", str(path), home=tmp_path)
    assert refused.returncode == 3 and "refused: " in refused.stdout
    section = refused.stdout.partition("# rerankd.toml\n")[2]
    filled = section.replace('template = ""', 'template = "{query} {document}"')
    settings = tmp_path / "rerankd.toml"
    settings.write_text(filled.replace('labels = ["", ""]', 'labels = ["yes", "no"]'))
    for model in (str(path), "lychee"):
        served = rerankd("inspect", model, "--config", str(settings), home=tmp_path)
        assert served.returncode == 0 and "scored as a causal language model" in served.stdout, served.stderr


def test_a_section_printed_for_a_relative_path_applies_in_every_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It contained the relative path, and was ignored for any other spelling of the path."""
    path = Twin("Lychee Rerank").write(tmp_path / "lychee.gguf")
    monkeypatch.chdir(tmp_path)
    lines = resolution_of(Path("lychee.gguf")).settings("lychee.gguf")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    settings = config.load(lines.replace('""', '"x"'), {}, {})
    for spelled in (str(path), "../lychee.gguf", "lychee"):
        assert settings.of(spelled).names == ("lychee",)
        assert settings.of(spelled).ref == str(path)
    assert settings.of("lychee.gguf").names == ()  # another file, in this folder


@pytest.mark.parametrize(
    ("ref", "name"),
    [
        ("hf:org/My.Repo-GGUF:Q8_0", "my-repo-gguf"),
        ("ms:org/repo", "repo"),
        ("/models/My Model.gguf", "my-model"),
        ("\u9e1f.gguf", "model"),
    ],
)
def test_the_printed_section_is_valid_toml(ref: str, name: str, tmp_path: Path) -> None:
    refusal = resolution_of(Twin("Lychee Rerank").write(tmp_path / "model.gguf"))
    ((section, own),) = tomllib.loads(refusal.settings(ref))["models"].items()
    assert (section, own["ref"]) == (name, ref)


def test_no_setting_makes_a_decision_model_a_reranker(tmp_path: Path) -> None:
    (kind,) = [kind for kind in KINDS if kind.what == "ModernBERT decision model"]
    assert resolution_of(kind.write(tmp_path), PartialRecipe(method="cross_encoder")).recipe is None


def test_a_section_is_found_by_its_ref() -> None:
    text = '[models.mine]\nref = "hf:org/repo"\nmethod = "embedding"\npooling = "cls"\n'
    settings = config.load(text, {}, {"model": ["hf:org/repo"]})
    (wanted,) = settings.wanted("")
    assert (wanted.ref, wanted.names, wanted.scoring.pooling) == ("hf:org/repo", ("mine",), "cls")
    assert settings.of("mine") == settings.of("hf:org/repo")
    assert settings.of("other").scoring.pooling is None


async def test_an_assumed_prompt_is_a_warning_in_every_response(tmp_path: Path) -> None:
    """For a Qwen3-Reranker by its name only."""
    path = ggufs.rewrite(
        GOLDEN / "qwen3-headless.gguf", tmp_path / "m.gguf", keys={"general.name": "My Qwen3-Reranker"}
    )
    settings = config.load("", {}, {"model": [str(path)], "home": tmp_path})
    async with Reranker(settings) as reranker:
        result = await reranker.rerank("panda", ["a bear"])
        assert any("because of its name" in warning for warning in result.warnings)
    own = {"scoring": {"template": "{query}|{document}"}}
    async with Reranker(config.load("", {}, {"model": [str(path)], "home": tmp_path, **own})) as reranker:
        assert (await reranker.rerank("panda", ["a bear"])).warnings == ()


def test_an_unknown_embedding_model_without_prefixes_has_a_warning(tmp_path: Path) -> None:
    """An e5 or a nomic model under another name had worse scores, and only `inspect` explained it."""
    path = Twin("Snowflake Arctic Embed L", "bert", 24, pooling="cls").write(tmp_path / "model.gguf")
    assert any("prefixes for queries" in warning for warning in resolution_of(path).warnings)
    for prefix in ("", "query: "):
        assert resolution_of(path, PartialRecipe(query_prefix=prefix)).warnings == ()
    known = Twin("Bge M3", "bert", 24, pooling="cls").write(tmp_path / "known.gguf")
    assert resolution_of(known).warnings == ()


def test_a_template_in_the_file_that_is_not_used_is_a_warning(tmp_path: Path) -> None:
    (kind,) = [kind for kind in KINDS if kind.what == "Qwen3-Reranker with another rerank template"]
    assert any(
        "another rerank template" in warning for warning in resolution_of(kind.write(tmp_path)).warnings
    )


def test_the_instruction_in_the_file_overrides_the_catalog(tmp_path: Path) -> None:
    """A fine-tune with Qwen3-Reranker's name got the catalog's instruction."""
    qwen = catalog.known().find("Qwen3-Reranker-0.6B")
    assert qwen is not None
    own = qwen.template.replace("{instruction}", "Find the tool that the user needs")
    path = Twin("Qwen3 Reranker 0.6B", template=own).write(tmp_path / "model.gguf")
    assert resolution_of(path).require().instruction == "Find the tool that the user needs"


async def test_a_template_without_control_tokens_works(tmp_path: Path) -> None:
    """Every request failed, because llama-server rejects a prompt of strings only."""
    scoring = {"template": "{query}|{document}", "labels": ["yes", "no"]}
    text = {"model": [str(GOLDEN / "qwen3-headless.gguf")], "home": tmp_path, "scoring": scoring}
    async with Reranker(config.load("", {}, text)) as reranker:
        result = await reranker.rerank("panda", ["a bear", "a train"], raw_scores=True)
        assert result.warnings == () and len({row.score for row in result.results}) == 2
        engine: Any = reranker.state.engine
        (prompt,) = await inputs(reranker, "panda", ["a bear"])
        assert prompt.whole.tolist() == await engine.tokenize("panda|a bear", special=True)


def test_force_does_not_replace_a_recipe(tmp_path: Path) -> None:
    """It is for models that fail the self-test; a prompt must come from the settings."""
    path = Twin("Lychee Rerank").write(tmp_path / "lychee.gguf")
    settings = config.load("", {}, {"model": [str(path)], "force": True, "home": tmp_path})
    with pytest.raises(Unscorable, match="not fully define its prompt"):
        prepare(settings)


def test_list_and_show_apply_the_section_of_a_pulled_model(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "hf--org--lychee-rerank"
    folder.mkdir(parents=True)
    Twin("Lychee Rerank").write(folder / "lychee.gguf")
    (tmp_path / "rerankd.toml").write_text(
        '[models.mine]\nref = "hf:org/lychee-rerank"\nmethod = "causal_lm"\ntemplate = "{query} {document}"\n'
        'labels = ["yes", "no"]\n'
    )
    listed = rerankd("list", "--json", "--config", str(tmp_path / "rerankd.toml"), home=tmp_path)
    assert json.loads(listed.stdout)[0]["method"] == "causal_lm"
    shown = rerankd("show", "mine", "--config", str(tmp_path / "rerankd.toml"), home=tmp_path)
    assert "scored as a causal language model" in shown.stdout
    assert json.loads(rerankd("list", "--json", home=tmp_path).stdout)[0]["method"] is None


def test_each_kind_is_in_the_table_of_results() -> None:
    rows = (GOLDEN / "README.md").read_text().splitlines()
    for kind in KINDS:
        (row,) = [row for row in rows if row.startswith(f"| {kind.what} |")]
        now = row.split("|")[3].strip()
        assert now.startswith(kind.becomes if kind.is_served else "refused"), row
        assert kind.asked in now
    assert len({kind.what for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize(
    ("write", "sizes", "name", "images"),
    [
        (hollow.vision, (28, 2048), "Qwen3-VL-Reranker-2B", (32, 4, 1800)),
        (hollow.vision, (36, 4096), "Qwen3-VL-Reranker-8B", (32, 4, 1800)),
        (hollow.jina_m0, (28, 1536), "jina-reranker-m0", (28, 4, 768)),
    ],
)
def test_models_that_read_images_have_the_blocks_of_their_own_code(
    write: Any, sizes: tuple[int, int], name: str, images: tuple[int, int, int], tmp_path: Path
) -> None:
    resolved = resolution_of(write(tmp_path / name, *sizes))
    recipe = resolved.require()
    assert resolved.entry is not None and resolved.entry.name == name and recipe.images is not None
    assert (recipe.images.side, recipe.images.least, recipe.images.most) == images
    assert not any("rank head is not used" in note for note in resolved.notes)
