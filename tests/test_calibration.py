"""Calibration: the fits, the choice between them, their measures, the threshold, and the settings that hold
them. tests/test_calibrated_service.py has the command and a server."""

from __future__ import annotations

import math
import shutil
import tomllib
import xml.etree.ElementTree as xml
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rerankd import config
from rerankd.cli.calibrate import section_to_write
from rerankd.config import ScoringSettings, sections
from rerankd.errors import CollectionError, ConfigError
from rerankd.evaluation import calibrate, calibration_report, reliability_plot
from rerankd.evaluation.calibrate import FOLDS, LEAST_OF_EACH, Pairs, fit, judged
from rerankd.evaluation.calibration_fits import isotonic, platt, scores
from rerankd.evaluation.calibration_quality import Threshold, quality, threshold
from rerankd.evaluation.calibration_report import Report
from rerankd.evaluation.collection import Collection
from rerankd.formats import model_files
from rerankd.normalization import MOST_KNOTS, Calibration, Normalization
from rerankd.recipes import calibrations
from rerankd.serving.prepare_model import prepare, resolve_file
from support import GOLDEN

OWN = Normalization("sigmoid")
CALIBRATION = Calibration(
    model="0123456789abcdef" * 2,
    collection="mine",
    fitted="2026-11-27",
    queries=20,
    relevant=40,
    irrelevant=60,
    method="platt",
    log_loss=(0.8, 0.4),
    brier=(0.3, 0.1),
    ece=(0.2, 0.01),
    logit_mean=-1.5,
    logit_sigma=2.0,
    reliability=((0.1, 0.05, 60), (0.9, 0.95, 40)),
    unjudged_irrelevant=True,
)
ISOTONIC = replace(
    CALIBRATION, method="isotonic", logit_mean=None, logit_sigma=None, knots=((1e-7, 0.1), (0.5, 0.75))
)


def drawn(count: int, mean: float, sigma: float, seed: int = 7) -> Pairs:
    """Pairs whose probability of relevance is sigmoid((raw - mean) / sigma), ten of each query."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(mean, 2 * sigma, count)
    relevant = rng.random(count) < 1 / (1 + np.exp(-(raw - mean) / sigma))
    return Pairs(raw, relevant, tuple(f"q{at // 10}" for at in range(count)))


# the fits


@pytest.mark.parametrize(("mean", "sigma"), [(0.0, 1.0), (0.83, 0.02), (-40.0, 12.0), (3e4, 500.0)])
def test_platt_finds_the_function_that_the_pairs_were_drawn_from(mean: float, sigma: float) -> None:
    pairs = drawn(20_000, mean, sigma)
    found = platt(pairs.raw, pairs.relevant)
    assert found is not None
    assert found.logit_sigma == pytest.approx(sigma, rel=0.06)
    assert found.logit_mean == pytest.approx(mean, abs=0.06 * sigma)


def test_platt_stays_finite_where_the_scores_separate_the_kinds() -> None:
    raw = np.concatenate((np.linspace(-3, -1, 40), np.linspace(1, 3, 40)))
    found = platt(raw, raw > 0)
    assert found is not None and 0.05 < found.logit_sigma < 1
    assert found.logit_mean == pytest.approx(0, abs=0.01)
    two_values = np.repeat([0.2, 0.8], 40)
    found = platt(two_values, two_values > 0.5)
    # Platt's targets: 41 of 42 relevant at 0.8, and 1 of 42 at 0.2.
    assert scores(np.array([0.2, 0.8]), found or OWN) == pytest.approx([1 / 42, 41 / 42], abs=1e-4)


def test_isotonic_pools_what_is_in_the_wrong_order() -> None:
    raw = np.array([1.0, 2.0, 3.0, 4.0])
    found = isotonic(raw, np.array([False, True, False, True]))
    # Platt's targets are 1/4 and 3/4; the middle two are pooled at their mean.
    assert found.knots == ((1, 1 / 4), (2.5, 1 / 2), (4, 3 / 4))


@given(st.integers(0, 2**32 - 1), st.integers(2, 400))
def test_isotonic_ascends_and_has_few_knots(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    raw = np.round(rng.normal(size=count), int(seed % 4))
    found = isotonic(raw, rng.random(count) < 1 / (1 + np.exp(-raw)))
    assert 1 <= len(found.knots) <= MOST_KNOTS
    assert all(one[0] < two[0] and one[1] <= two[1] for one, two in pairwise(found.knots))
    assert all(0 < score < 1 for _, score in found.knots)


def test_many_pools_are_merged_to_the_limit() -> None:
    raw = np.arange(20_000, dtype=float)
    relevant = np.random.default_rng(1).random(20_000) < (raw / 20_000) ** 2
    found = isotonic(raw, relevant)
    assert len(found.knots) == MOST_KNOTS
    assert scores(np.array([10_000.0]), found)[0] == pytest.approx(0.25, abs=0.05)


# the choice, on held-out queries


def test_a_sigmoid_is_chosen_where_the_truth_is_one_and_isotonic_where_it_is_not() -> None:
    assert fit(drawn(3_000, 0.5, 1), OWN).method == "platt"
    pairs = drawn(6_000, 0.0, 1.0)
    steps = np.random.default_rng(3).random(6_000) < np.where(pairs.raw < 1, 0.05, 0.6)
    found = fit(replace(pairs, relevant=steps), OWN)
    assert found.method == "isotonic"
    assert found.both["isotonic"].log_loss < found.both["platt"].log_loss
    assert found.after.log_loss < found.before.log_loss and found.is_better


def test_what_a_query_is_told_does_not_depend_on_its_own_judgements() -> None:
    pairs = drawn(400, 0, 1)
    other = pairs.relevant.copy()
    other[:10] = ~other[:10]
    one, two = fit(pairs, OWN), fit(replace(pairs, relevant=other), OWN)
    assert one.method == two.method == "platt"
    assert list(one.held_out[:10]) == list(two.held_out[:10])
    assert list(one.held_out[10:]) != list(two.held_out[10:])


def test_a_calibrated_model_is_not_improved_again() -> None:
    found = fit(drawn(3_000, 0, 1), OWN)
    assert found.before.log_loss == pytest.approx(found.after.log_loss, abs=0.002)
    assert found.before.ece < 0.03


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"relevant": np.ones(400, bool)}, r"Only 0 are not relevant\. Unjudged documents do not count"),
        ({"relevant": np.zeros(400, bool)}, r"at least 30 pairs .* Only 0 are relevant"),
        ({"queries": ("q",) * 400}, "at least 10 queries, .* this collection has 1"),
        ({"raw": np.full(400, 0.25)}, r"gives every pair the same raw score \(0.25\)"),
        ({"relevant": np.arange(400) < 40}, "All relevant documents are of 4 queries"),
    ],
)
def test_pairs_that_do_not_suffice_get_a_sentence(change: dict[str, Any], says: str) -> None:
    with pytest.raises(CollectionError, match=says):
        fit(replace(drawn(400, 0, 1), **change), OWN)


def test_too_few_judgements_say_how_many_are_needed() -> None:
    pairs = drawn(400, 0, 1)
    few = pairs.relevant & (np.cumsum(pairs.relevant) < LEAST_OF_EACH)
    with pytest.raises(CollectionError, match=f"Only {LEAST_OF_EACH - 1} are relevant"):
        fit(replace(pairs, relevant=few), OWN)


def test_scores_that_do_not_order_documents_are_refused() -> None:
    pairs = drawn(2_000, 0, 1)
    with pytest.raises(CollectionError, match="A higher raw score does not mean a more relevant document"):
        fit(replace(pairs, raw=-pairs.raw), OWN)
    noise = np.random.default_rng(5).random(2_000)
    with pytest.raises(
        CollectionError, match=r"say nothing about relevance|A higher raw score does not mean"
    ):
        fit(replace(pairs, raw=noise), OWN)


def test_separable_pairs_can_be_fitted() -> None:
    pairs = drawn(400, 0, 1)
    found = fit(replace(pairs, relevant=pairs.raw > 0), OWN)
    assert found.after.log_loss < 0.1
    assert all(0 < score < 1 for score in found.held_out)


def test_each_fold_leaves_both_kinds_although_queries_have_one_kind_each() -> None:
    raw = np.tile(np.linspace(0, 1, 10), 10)
    relevant = np.repeat(np.arange(10) < 5, 10)
    pairs = Pairs(raw + relevant, relevant, tuple(f"q{at // 10}" for at in range(100)))
    assert fit(pairs, OWN).after.log_loss < 0.4
    folds = calibrate._folds(pairs, 1)
    for fold in range(FOLDS):
        assert {*relevant[folds != fold].tolist()} == {True, False}


COLLECTION = Collection(
    "mine",
    {name: f"about {name}" for name in "abcdq"},
    {"q": "about q", "r": "r"},
    {"q": {"a": 2, "b": 1, "c": 0}, "r": {"d": 1}},
)


def test_unjudged_documents_are_left_out_unless_the_user_says_that_they_are_irrelevant() -> None:
    assert judged(COLLECTION, None) == {"q": ("a", "b", "c"), "r": ("d",)}
    # The query itself is a document of this collection, and never one of its own candidates.
    candidates = {"q": ("b", "d", "q"), "r": ("a",)}
    assert judged(COLLECTION, candidates) == {"q": ("a", "b", "c", "d"), "r": ("d", "a")}


async def test_documents_without_a_score_are_counted_and_left_out() -> None:
    async def ask(query: str, documents: object) -> list[float | None]:
        return [0.5, None, 0.25] if query == "about q" else [None]

    found = await calibrate.score_pairs(COLLECTION, judged(COLLECTION, None), 2, ask, lambda *_: None)
    assert list(found.raw) == [0.5, 0.25] and list(found.relevant) == [True, False]
    assert found.queries == ("q", "q") and found.left_out == 2


# measures


def test_measures_match_values_computed_by_hand() -> None:
    found = quality(np.array([0.9, 0.8, 0.3, 0.32]), np.array([True, False, False, True]))
    assert found.log_loss == pytest.approx(
        -(math.log(0.9) + math.log(0.2) + math.log(0.7) + math.log(0.32)) / 4
    )
    assert found.brier == pytest.approx((0.01 + 0.64 + 0.09 + 0.68**2) / 4)
    assert found.bins == ((pytest.approx(0.31), 0.5, 2), (0.8, 0.0, 1), (0.9, 1.0, 1))
    assert found.ece == pytest.approx((2 * 0.19 + 0.8 + 0.1) / 4)
    # Certain and wrong: a finite loss.
    assert quality(np.array([1.0]), np.array([False])).log_loss == pytest.approx(-math.log(1e-6))


def test_the_threshold_is_the_lowest_score_with_the_precision() -> None:
    values = np.array([0.95, 0.9, 0.8, 0.7, 0.6, 0.5])
    relevant = np.array([True, True, False, True, True, False])
    found = threshold(values, relevant, 0.8)
    assert found is not None
    assert (found.score, found.precision, found.recall, found.documents) == (0.6, 0.8, 1.0, 5)
    assert found.is_from_few
    # Wilson's interval of 4 of 5.
    assert (found.low, found.high) == (pytest.approx(0.3755, abs=1e-4), pytest.approx(0.9638, abs=1e-4))
    assert threshold(values, relevant, 1.0).score == 0.9  # type: ignore[union-attr]
    assert threshold(np.array([0.4]), np.array([False]), 0.5) is None


def test_a_threshold_is_a_short_number_that_keeps_its_documents() -> None:
    found = threshold(np.array([0.123456, 0.123449, 0.1]), np.array([True, True, False]), 1.0)
    assert found is not None and (found.score, found.documents) == (0.1234, 2)


def test_the_plot_is_valid_svg_with_a_circle_for_each_bin() -> None:
    text = reliability_plot.svg("a <model> & more", [(0.5, 0.2, 9)], [(0.1, 0.1, 7), (0.9, 1.0, 2)])
    root = xml.fromstring(text)
    assert len(root.findall("{http://www.w3.org/2000/svg}circle")) == 3
    assert "a &lt;model&gt; &amp; more" in text


# in the settings


@pytest.mark.parametrize("calibration", [CALIBRATION, ISOTONIC])
def test_a_calibration_is_read_as_it_was_written(calibration: Calibration) -> None:
    text = calibrations.section("my model", calibration)
    assert config.load(text, {}, {}).of("my model").calibration == calibration
    assert config.load("[models.other]\n" + text, {}, {}).of("other").calibration is None


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"method": "isotonic"}, "isotonic has 1 to 32 knots"),
        ({"knots": ((0.0, 0.1),)}, "platt has logit_mean and logit_sigma, and no knots"),
        ({"logit_sigma": 0.0}, "logit_sigma from 1e-06"),
        ({"logit_mean": math.nan}, "logit_mean must be"),
        ({"log_loss": (math.inf, 0.4)}, "finite numbers"),  # no JSON, so no status page
        ({"log_loss": (0.8, -0.1)}, "finite numbers that are 0 or more"),
        ({"brier": (1.5, 0.1)}, "brier has numbers from 0 to 1"),
        ({"ece": (0.2, math.nan)}, "ece has numbers from 0 to 1"),
        ({"model": "0123"}, "32 hexadecimal digits"),
        ({"model": "0123456789ABCDEF" * 2}, "32 hexadecimal digits"),
        ({"fitted": "yesterday"}, "fitted must be a date"),
        ({"fitted": "2026-02-30"}, "fitted must be a date"),
        ({"queries": 0}, "queries must be 1 or more"),
        ({"queries": 101}, "queries must not be more"),
        ({"relevant": 0}, "relevant must be 1 or more"),
        ({"irrelevant": -3}, "irrelevant must be 1 or more"),
        ({"relevant_grade": 0}, "relevant_grade must be 1 or more"),
        ({"reliability": ((math.nan, 0.05, 60),)}, "each bin of reliability"),
        ({"reliability": ((0.1, 1.05, 100),)}, "each bin of reliability"),
        ({"reliability": ((0.1, 0.05, 0), (0.9, 0.95, 100))}, "each bin of reliability"),
        ({"reliability": ((0.9, 0.95, 40), (0.1, 0.05, 60))}, "must not descend"),
        ({"reliability": ((0.1, 0.05, 60),)}, "add up to the 100"),
    ],
)
def test_a_calibration_that_can_not_be_meant_is_rejected(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        replace(CALIBRATION, **change)
    for knots, why in (
        (((0.0, 0.5), (0.0, 0.6)), "must ascend"),
        (((0.0, 0.5), (1.0, 0.4)), "must not descend"),
        (((0.0, 1.5),), "from 0 to 1"),
        (((math.nan, 0.5),), "a raw score"),
    ):
        with pytest.raises(ValueError, match=why):
            replace(ISOTONIC, knots=knots)


def test_a_wrong_line_in_a_calibration_names_itself() -> None:
    text = calibrations.section("e5", CALIBRATION)
    with pytest.raises(ConfigError, match=r"\.calibration\.sigma is not a setting\. Did you mean logit"):
        config.load(text + "\nsigma = 3", {}, {})
    with pytest.raises(ConfigError, match=r"models\.e5\.calibration\.collection is missing\."):
        config.load(text.replace('collection = "mine"\n', ""), {}, {})
    for line, odd, why in (
        ("logit_sigma = 2.0\n", "", "platt has logit_mean"),
        ("queries = 20\n", "queries = -1\n", "queries must be 1 or more"),
    ):
        said = rf"mine\.toml: models\.e5\.calibration can't be used: {why}"
        with pytest.raises(ConfigError, match=said):
            config.load(text.replace(line, odd), {}, {}, "mine.toml")


FILE = """\
# the machine in the cellar
port = 11444   # not the default

[models.e5]    # our model
ref = "builtin:e5"

# the other one
[models.other]
ref = "other.gguf"
"""
PATH = ("models", "e5", "calibration")
MISSING = {"e5": '[models.e5]\nref = "builtin:e5"'}


def test_a_section_is_added_and_replaced_and_nothing_else_changes() -> None:
    once = sections.with_section(FILE, PATH, calibrations.section("e5", CALIBRATION), MISSING)
    assert once.startswith(FILE)
    assert config.load(once, {}, {}).of("e5").calibration == CALIBRATION
    more = once + "\n# a last word\n[scoring]\nmax_length = 128\n"
    twice = sections.with_section(more, PATH, calibrations.section("e5", ISOTONIC), MISSING)
    assert config.load(twice, {}, {}).of("e5").calibration == ISOTONIC
    kept = [line for line in more.splitlines() if line not in calibrations.section("e5", CALIBRATION)]
    assert [line for line in twice.splitlines() if line in kept or "#" in line] == kept


def test_a_section_for_a_model_without_one_begins_with_its_ref() -> None:
    new = sections.with_section("", PATH, calibrations.section("e5", CALIBRATION), MISSING)
    assert new.startswith('[models.e5]\nref = "builtin:e5"\n\n[models.e5.calibration]\n')
    windows = sections.with_section("port = 1\r\n", PATH, calibrations.section("e5", CALIBRATION), MISSING)
    assert windows.count("\r\n") == windows.count("\n")
    assert tomllib.loads(windows)["models"]["e5"]["ref"] == "builtin:e5"


@pytest.mark.parametrize(
    ("own", "after"),
    [
        ("knots = [\n  [1.0, 0.5],\n  [2.0, 0.6]\n]\n", ""),  # as formatters write it
        ('method = "platt"\n', '[models."a [2]"]  # brackets\nref = "y"\n'),
        ('method = "platt"\n', '[[others]]\nname = "y"\n'),
    ],
)
def test_a_former_section_ends_where_the_next_table_begins(own: str, after: str) -> None:
    head = '[models.e5]\nref = "x"\n'
    section = calibrations.section("e5", CALIBRATION)
    new = sections.with_section(f"{head}[models.e5.calibration]\n{own}{after}", PATH, section, MISSING)
    assert new == f"{head}{after}\n{section}\n"


@pytest.mark.parametrize(
    "text",
    [
        'models = { e5 = { ref = "builtin:e5" } }\n',
        '[models]\ne5 = { ref = "builtin:e5" }\n',
        '[models.e5]\nref = "builtin:e5"\ncalibration.model = "x"\n',
        "models = 3\n",
        "[models\n",
    ],
)
def test_a_file_that_can_not_be_changed_line_by_line_is_left_alone(text: str) -> None:
    with pytest.raises(ConfigError, match="can't be added"):
        sections.with_section(text, PATH, calibrations.section("e5", CALIBRATION), MISSING)


@pytest.mark.parametrize(("model", "section"), [("a", "a"), ("b", "b"), ("c", "xlmr-head")])
def test_a_calibration_is_of_the_section_that_was_asked_for(model: str, section: str, home: Path) -> None:
    """Sections may have the same file and other prompts."""
    file = GOLDEN / "bert-embedder.gguf"
    prompts = 'query_prefix = "query: "\ndocument_prefix = ""\n'
    text = f'[models.a]\nref = "{file}"\n{prompts}[models.b]\nref = "{file}"\nquery_prefix = ""\n'
    reference = str(GOLDEN / "xlmr-head.gguf") if model == "c" else model
    settings = config.load(text + 'document_prefix = ""\n', {}, {"home": home, "model": (reference,)})
    name, lines = section_to_write(settings, prepare(settings))
    assert name == section and lines.startswith(f"[models.{section}]\n")


# the model that it belongs to


def test_a_calibration_is_used_for_its_own_model_and_refused_for_another(tmp_path: Path) -> None:
    here = tmp_path / "copied" / "any-name.gguf"
    here.parent.mkdir()
    shutil.copy(GOLDEN / "xlmr-head.gguf", here)
    metadata = model_files.read(here)
    recipe = resolve_file(metadata, ScoringSettings()).require()
    original = model_files.read(GOLDEN / "xlmr-head.gguf")
    own = replace(CALIBRATION, model=calibrations.model_digest(original, recipe))

    resolved = resolve_file(metadata, ScoringSettings(), own)
    assert resolved.calibration == own and resolved.warnings == ()
    assert resolved.require() == recipe  # what a cached raw score depends on
    assert resolved.calibrated(recipe.normalization) == Normalization(
        "sigmoid", logit_mean=-1.5, logit_sigma=2.0
    )
    assert "sigmoid((raw + 1.5) / 2)" in resolved.explanation
    assert "calibrated by platt on mine, 2026-11-27: 100 pairs of 20 queries" in resolved.explanation
    # Lengths do not change a raw score, and a normalization is what it replaces.
    same = resolve_file(metadata, ScoringSettings(max_length=64, logit_sigma=3.0), own)
    assert same.calibration == own

    content = bytearray(here.read_bytes())
    content[-40_000:] = bytes(40_000)  # other weights, with the same header and size
    here.write_bytes(content)
    other = resolve_file(model_files.read(here), ScoringSettings(), own)
    assert other.calibration is None
    assert other.calibrated(recipe.normalization) == recipe.normalization
    assert "it was fitted on another file or another recipe" in other.warnings[-1]


def test_another_prompt_needs_another_calibration() -> None:
    metadata = model_files.read(GOLDEN / "bert-embedder.gguf")
    scoring = ScoringSettings(query_prefix="query: ", document_prefix="")
    recipe = resolve_file(metadata, scoring).require()
    own = replace(CALIBRATION, model=calibrations.model_digest(metadata, recipe))
    assert resolve_file(metadata, scoring, own).calibration == own
    assert resolve_file(metadata, scoring.model_copy(update={"query_prefix": ""}), own).calibration is None


# the report


def test_the_report_shows_figures_settings_and_what_to_doubt() -> None:
    found = fit(drawn(150, -1.5, 2.0), OWN)
    calibration = found.calibration(model="0123456789abcdef" * 2, collection="mine", fitted="2026-11-27")
    section = calibrations.section("tiny", calibration)
    report = Report("tiny", "cross_encoder", found, calibration, 0.99, None, section)
    said = calibration_report.text(report)
    assert f"mine: 150 pairs of 15 queries, {calibration.relevant} relevant (grade 1 or more)" in said
    assert "Few judgements: with fewer than 120 of each kind" in said
    assert "No score_threshold reaches a precision of 0.99" in said
    assert section in said
    assert f'--pooler-config \'{{"logit_mean": {calibration.logit_mean}' in said
    assert "platt (chosen)" in said

    few = Threshold(0.8, 1.0, 0.6, 1.0, 0.25, 8)
    worse = replace(found, before=replace(found.before, log_loss=0.0))
    said = calibration_report.text(replace(report, scoring="embedding", fit=worse, threshold=few))
    assert "score_threshold = 0.8.\n8 of the pairs reach it; 100% of them are relevant" in said
    assert "fewer than 30 documents: judge more" in said
    assert "Do not add this calibration." in said
    assert "vLLM" not in said
    told = calibration_report.as_json(replace(report, threshold=few))
    assert told["threshold"]["is_from_few"] is True and told["methods"].keys() == {"platt", "isotonic"}
