"""`rerankd recipe show`, `new` and `test`: recipes as TOML, for every kind of file, and with real engines."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import test_sentence_transformers
from fake_hub import fake_hub
from kinds import KINDS, Kind
from rerankd import config
from rerankd.config import ScoringSettings
from rerankd.errors import CollectionError, ConfigError, ModelFileError
from rerankd.evaluation import known_pairs
from rerankd.formats import model_files
from rerankd.recipes import catalog, recipe_section
from rerankd.recipes.partial_recipe import PartialRecipe
from rerankd.recipes.resolution import Resolution
from rerankd.recipes.resolve import resolve
from support import GOLDEN, rerankd
from twins import Twin

SERVED = [kind for kind in KINDS if kind.is_served]
Run = Callable[..., Any]
qwen = test_sentence_transformers.qwen  # a fixture


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return lambda *arguments, **env: rerankd(*map(str, arguments), home=tmp_path / "home", **env)


def resolved(path: Path, scoring: ScoringSettings | None = None) -> Resolution:
    settings = PartialRecipe(**scoring.model_dump()) if scoring is not None else PartialRecipe()
    return resolve(model_files.read(path), catalog.known(), settings)


def in_section(text: str) -> ScoringSettings:
    """The scoring settings of the only model in a settings file."""
    settings = config.load(text, {}, {})
    (name,) = settings.models
    return settings.of(name).scoring


# recipe show


@pytest.mark.parametrize("kind", SERVED, ids=lambda kind: kind.what)
def test_the_section_of_each_kind_of_file_gives_the_same_recipe(kind: Kind, tmp_path: Path) -> None:
    path = kind.write(tmp_path)
    found = resolved(path)
    text = recipe_section.section(found, found.require(), str(path))
    again = resolved(path, in_section(text))
    assert again.require() == found.require()
    # A warning that a recipe contains an assumption stays, unless the user has confirmed the prompt.
    assert again.warnings == found.warnings or found.require().method == "causal_lm"


def test_each_part_has_its_source(tmp_path: Path) -> None:
    found = resolved(GOLDEN / "qwen3-headed.gguf", ScoringSettings(max_length=64))
    text = recipe_section.section(found, found.require(), "my model")
    assert 'ref = "my model"' in text and text.splitlines()[0].startswith("# my model is scored as a causal")
    assert "max_length = 64  # from your settings" in text
    assert 'labels = ["yes", "no"]  # from the model\'s file' in text
    assert 'normalization = "sigmoid"  # the default of the method' in text
    path = Twin("multilingual-e5-small", "bert", 12, 384).write(tmp_path / "e5.gguf")
    known = resolved(path)
    text = recipe_section.section(known, known.require(), str(path))
    assert 'query_prefix = "query: "  # from rerankd\'s catalog' in text
    assumed = resolved(Twin("Qwen3-Reranker-0.6B pruned", blocks=20).write(tmp_path / "pruned.gguf"))
    text = recipe_section.section(assumed, assumed.require(), "my model")
    assert "\n# Check before use: This model is prompted like Qwen3-Reranker because of its name" in text
    unknown = resolved(GOLDEN / "bert-embedder.gguf")
    text = recipe_section.section(unknown, unknown.require(), "my model")
    assert '\n# query_prefix = ""  # unknown: set it as the model card states\n' in text


def test_a_pooling_from_the_settings_is_part_of_the_section(tmp_path: Path) -> None:
    kind = next(kind for kind in KINDS if kind.what == "unnamed ModernBERT, older converter")
    path = kind.write(tmp_path)
    scoring = ScoringSettings(method="cross_encoder", pooling="mean")
    found = resolved(path, scoring)
    text = recipe_section.section(found, found.require(), str(path), scoring.pooling)
    assert resolved(path, in_section(text)).require() == found.require()


def test_show_prints_a_section_that_serve_accepts(run: Run, tmp_path: Path) -> None:
    shown = run("recipe", "show", GOLDEN / "qwen3-headed.gguf")
    assert shown.returncode == 0, shown.stderr
    settings = config.load(shown.stdout, {}, {})
    assert settings.of("qwen3-headed").ref == str(GOLDEN / "qwen3-headed.gguf")
    refused = run("recipe", "show", GOLDEN / "qwen2-labels.gguf")
    assert refused.returncode == 3 and "plain language model" in refused.stderr


@pytest.mark.parametrize("name", ["mine", "other", "a name.with dots"])
def test_show_prints_the_section_that_was_named(name: str, run: Run, tmp_path: Path) -> None:
    """Several sections may have one file: each is shown under its own name, with its own settings."""
    path = GOLDEN / "xlmr-head.gguf"
    lengths = {"mine": 64, "other": 32, "a name.with dots": 48}
    file = tmp_path / "rerankd.toml"
    sections = (f'[models."{one}"]\nref = "{path}"\nmax_length = {most}\n' for one, most in lengths.items())
    file.write_text("".join(sections))
    recipe = run("recipe", "show", name, "--config", file)
    found = config.load(recipe.stdout, {}, {}).models
    assert list(found) == [name] and found[name].max_length == lengths[name], recipe.stderr
    values = json.loads(run("recipe", "show", name, "--json", "--config", file).stdout)
    assert tomllib.loads(recipe.stdout) == {"models": values["models"]}
    assert (values["sources"]["max_length"], values["text"]) == ("settings", recipe.stdout.rstrip("\n"))
    shown = json.loads(run("show", name, "--json", "--config", file).stdout)
    assert shown["recipe"]["max_length"] == lengths[name]


def test_the_settings_that_are_missing_go_into_the_section_that_was_named(run: Run, tmp_path: Path) -> None:
    """A second section for the same file would never be read."""
    file = tmp_path / "rerankd.toml"
    file.write_text(f'[models.mine]\nref = "{GOLDEN / "qwen2-labels.gguf"}"\nmax_length = 64\n')
    for command in ("inspect", "show"):
        assert "[models.mine]" in run(command, "mine", "--config", file).stdout
    assert "[models.mine]" in run("recipe", "show", "mine", "--config", file).stderr
    written = tmp_path / "new.toml"
    made = run("recipe", "new", "mine", "--output", written, "--config", file)
    assert "[models.mine]" in written.read_text(), made.stderr


def test_show_reads_a_repository_without_a_download(run: Run, tmp_path: Path) -> None:
    files = {"model.gguf": (GOLDEN / "qwen3-headed.gguf").read_bytes()}
    with fake_hub(repos={"org/repo": files}) as hub:
        shown = run("recipe", "show", "hf:org/repo", HF_ENDPOINT=hub.url)
    assert tomllib.loads(shown.stdout)["models"]["repo"]["ref"] == "hf:org/repo"
    assert not [*(tmp_path / "home").glob("models/*")]


# recipe new


@pytest.mark.parametrize("kind", [one for one in KINDS if not one.is_served], ids=lambda kind: kind.what)
def test_a_file_to_fill_in_is_valid_for_each_refused_kind(kind: Kind, tmp_path: Path) -> None:
    try:
        found = resolved(kind.write(tmp_path))
    except ModelFileError:  # a file that can't be read has no recipe
        return
    text = recipe_section.to_fill_in(found, "hf:org/repo", "repo.toml")
    assert bool(text) == bool(found.refusal and found.refusal.lines)
    if text:
        assert tomllib.loads(text)["models"]["repo"]["method"] and text.endswith("\n")
        assert found.refusal is not None and found.refusal.reason in text
        assert all(len(line) <= 110 for line in recipe_section._HELP["causal_lm"].splitlines())


def test_new_fills_in_what_is_known_and_keeps_existing_files(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    written = run("recipe", "new", GOLDEN / "qwen2-labels.gguf", "--output", path)
    assert (written.returncode, written.stdout) == (0, ""), written.stderr
    assert f"rerankd recipe test {path}" in written.stderr
    text = path.read_text()
    assert tomllib.loads(text)["models"]["qwen2-labels"]["labels"] == ["", ""]
    assert "it is a plain language model" in text and "# template: the complete prompt" in text
    path.write_text("mine")
    again = run("recipe", "new", GOLDEN / "qwen2-labels.gguf", "--output", path)
    assert again.returncode == 2 and "--force" in again.stderr and path.read_text() == "mine"
    assert run("recipe", "new", GOLDEN / "qwen2-labels.gguf", "--output", path, "--force").returncode == 0
    assert path.read_text() == text


def test_new_says_why_no_file_is_written(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    known = run("recipe", "new", GOLDEN / "xlmr-head.gguf", "--output", path)
    assert known.returncode == 2 and "rerankd recipe show" in known.stderr
    kind = next(kind for kind in KINDS if kind.what == "two-label head")
    refused = run("recipe", "new", kind.write(tmp_path / "model"), "--output", path)
    assert refused.returncode == 3 and "2 labels" in refused.stderr
    unwritable = run("recipe", "new", GOLDEN / "qwen2-labels.gguf", "--output", tmp_path / "no" / "x.toml")
    assert unwritable.returncode == 1 and "can't be written: No such file" in unwritable.stderr
    assert not path.exists()


def test_new_fills_in_what_safetensors_declare_for_a_gguf_file(qwen: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    written = run("recipe", "new", qwen, "--output", path)
    assert written.returncode == 0, written.stderr
    section = tomllib.loads(path.read_text())["models"]["judge"]
    assert section["ref"] == "" and "<Query>: {query}" in section["template"] and all(section["labels"])
    assert 'ref = ""  # a GGUF file of this model' in path.read_text()


# recipe test


def golden_pairs(name: str, path: Path, count: int = 4, **changed: float) -> Path:
    """Write the first pairs of a golden model that fit, with their reference scores."""
    texts = {pair["id"]: pair for pair in json.loads((GOLDEN / "pairs.json").read_text())}
    cases = [one for one in json.loads((GOLDEN / f"{name}.json").read_text())["cases"] if one["fits"]]
    rows = [
        {"query": texts[one["id"]]["query"], "document": texts[one["id"]]["document"], "raw": one["raw"]}
        for one in cases[:count]
    ]
    rows[0] |= changed
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_recipe_is_filled_in_and_tested_on_known_scores(run: Run, tmp_path: Path) -> None:
    path, golden = tmp_path / "mine.toml", json.loads((GOLDEN / "qwen2-labels.json").read_text())
    run("recipe", "new", GOLDEN / "qwen2-labels.gguf", "--output", path)
    pairs = golden_pairs("qwen2-labels", tmp_path / "pairs.jsonl")
    empty = run("recipe", "test", path, "--pairs", pairs)
    assert empty.returncode == 2 and "must contain {query} exactly once" in empty.stderr
    filled = path.read_text().replace('labels = ["", ""]', f"labels = {json.dumps(golden['labels'])}")
    template = json.dumps("\x1e".join(golden["pieces"]))
    path.write_text(filled.replace('template = ""', f"template = {template}"))

    tested = run("recipe", "test", path, "--pairs", pairs)
    assert tested.returncode == 0, tested.stderr
    assert tested.stdout.count("\tok") == 4 and tested.stdout.count("\n") == 4
    assert "4 of 4 pairs are within their tolerance; the largest difference is" in tested.stderr
    # The lines for the catalog are those of an entry that gives the same recipe.
    lines = tested.stderr.partition("[[model]]")[2]
    entry = catalog.load(f"[[model]]{lines}".replace('licence = ""', 'licence = "MIT"')).entries[0]
    assert (entry.template, list(entry.labels)) == ("\x1e".join(golden["pieces"]), golden["labels"])
    assert entry.match.fits(model_files.read(GOLDEN / "qwen2-labels.gguf"))


def test_a_pair_outside_its_tolerance_fails_the_test(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "shown.toml"
    path.write_text(run("recipe", "show", GOLDEN / "bert-pairs").stdout)
    pairs = golden_pairs("bert-pairs", tmp_path / "pairs.jsonl", raw=5.0)
    tested = run("recipe", "test", path, "--pairs", pairs, "--json")
    assert tested.returncode == 1, tested.stderr
    found = json.loads(tested.stdout)
    assert [one["passed"] for one in found["pairs"]] == [False, True, True, True]
    assert found["largest_difference"] == abs(5.0 - found["pairs"][0]["got"]) > 1
    assert (found["passed"], found["catalog_entry"]) == (False, None)
    told = run("recipe", "test", path, "--pairs", pairs)
    assert told.returncode == 1 and "\toutside" in told.stdout and "3 of 4 pairs" in told.stderr
    assert "[[model]]" not in told.stderr


def test_blank_and_truncated_documents_are_named(run: Run, tmp_path: Path) -> None:
    path, pairs = tmp_path / "shown.toml", tmp_path / "pairs.jsonl"
    path.write_text(run("recipe", "show", GOLDEN / "bert-pairs").stdout)
    rows = [{"query": "q", "document": text, "score": 0.5} for text in (" ", "word " * 900)]
    pairs.write_text("\n".join(map(json.dumps, rows)))
    tested = run("recipe", "test", path, "--pairs", pairs)
    assert tested.returncode == 1
    assert "note: pair 1: the document is blank" in tested.stderr
    assert "note: pair 2: the document was truncated to max_length" in tested.stderr


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("", (), "has no [models.NAME] section"),
        ("[models.a]\n[models.b]\n", (), "several sections: a, b. Name one with --model"),
        ("[models.a]\n", ("--model", "c"), "has no section [models.c]. Its sections: a."),
        ("[models.a]\nscore = 1\n", (), "models.a.score is not a setting"),
    ],
)
def test_a_settings_file_without_the_recipe_is_named(
    text: str, options: tuple[str, ...], words: str, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "some.toml"
    path.write_text(text)
    tested = run("recipe", "test", path, "--pairs", tmp_path / "none.jsonl", *options)
    assert tested.returncode == 2 and words in tested.stderr


# Pairs with known scores

PAIR = {"query": "q", "document": "d", "raw": 1.5}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "f, line 1: not valid JSON"),
        ("[1]", "expected a JSON object"),
        (
            json.dumps({**PAIR, "text": ""}),
            "unknown field 'text'. The fields are query, document, raw, score",
        ),
        (json.dumps({**PAIR, "query": 1}), "query must be a string"),
        (json.dumps({"query": "q", "raw": 1}), "document must be a string"),
        (json.dumps({**PAIR, "instruction": None}), "instruction must be a string"),
        (json.dumps({**PAIR, "score": 0.5}), "set either raw"),
        (json.dumps({"query": "q", "document": "d"}), "set either raw"),
        (json.dumps({**PAIR, "raw": "1.5"}), 'raw is "1.5", but must be a finite number'),
        (json.dumps({**PAIR, "raw": True}), "raw is true, but must be a finite number"),
        ('{"query": "q", "document": "d", "raw": NaN}', "raw is NaN, but must be a finite number"),
        (json.dumps({"query": "q", "document": "d", "score": 1.5}), "score is 1.5, but must be from 0 to 1"),
        (json.dumps({**PAIR, "tolerance": -1}), "tolerance is -1, but must not be negative"),
    ],
)
def test_an_invalid_pair_names_the_line_and_the_field(line: str, words: str) -> None:
    with pytest.raises(CollectionError) as raised:
        known_pairs.parse(line, "f, line 1")
    assert str(raised.value).startswith("f, line 1: ") and words in str(raised.value)


def test_a_file_of_pairs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        f"\ufeff{json.dumps(PAIR)}\n\n{json.dumps({**PAIR, 'tolerance': 0, 'instruction': 'i'})}\n"
    )
    first, second = known_pairs.read(path)
    assert first == known_pairs.Pair("q", "d", 1.5, True, known_pairs.RAW_TOLERANCE)
    assert second == replace(first, tolerance=0.0, instruction="i")
    path.write_text("\n")
    for missing, words in ((path, "has no pairs"), (tmp_path / "none", "can't be read: No such file")):
        with pytest.raises(CollectionError, match=words):
            known_pairs.read(missing)


def test_a_pair_passes_within_its_tolerance() -> None:
    pair = known_pairs.parse('{"query": "q", "document": "d", "score": 0.5}', "f")
    assert known_pairs.Compared(pair, 0.51).passed and not known_pairs.Compared(pair, 0.52).passed
    raw = known_pairs.Pair("q", "d", 1.0, True, 0.05)
    assert known_pairs.Compared(raw, 1.04).passed and not known_pairs.Compared(raw, 1.06).passed
    assert not known_pairs.Compared(raw, None, "blank").passed


def test_the_error_of_a_bad_recipe_names_the_setting() -> None:
    with pytest.raises(ConfigError, match="are not different texts"):
        resolved(
            GOLDEN / "qwen2-labels.gguf", ScoringSettings(template="{query}{document}", labels=("", ""))
        ).require()
