"""`rerankd eval --calibrate` with the built-in model and the included collection, and a server with it."""

from __future__ import annotations

import json
import re
import shutil
import xml.etree.ElementTree as xml
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import httpx
import numpy as np
import pytest

from rerankd import config
from rerankd.config import Settings
from rerankd.evaluation import bm25, calibrate, measure
from rerankd.evaluation.calibration_fits import scores
from rerankd.evaluation.collection import EVERYDAY, read
from rerankd.service import Reranker
from rerankd.serving.prepare_model import prepare
from support import Program, post, rerankd

# Every candidate counts: the collection says that what is not judged is about something else.
COMMAND = ("eval", "--calibrate", "--unjudged-irrelevant", "--candidates", "20", "--json")
QUERY = "how do I get rid of ants in the kitchen?"
DOCUMENTS = [
    "Sprinkle vinegar where ants enter the kitchen, and seal the crack.",
    "The history of the printing press.",
    "Ants live in colonies.",
    "A kitchen needs good light.",
]


@dataclass
class Calibrated:
    """The settings file that the command wrote, and what it printed."""

    file: Path
    told: dict[str, Any]
    plot: str


@pytest.fixture(scope="module")
def calibrated(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Calibrated:
    folder = tmp_path_factory.mktemp("calibrated")
    file, plot = folder / "rerankd.toml", folder / "plot.svg"
    file.write_text('# mine\n[models.e5]  # small\nref = "builtin:e5"\n')
    ended = rerankd(*COMMAND, "--config", str(file), "--plot", str(plot), "--write", home=home)
    assert ended.returncode == 0, ended.stderr
    return Calibrated(file, json.loads(ended.stdout), plot.read_text())


def settings_of(calibrated: Calibrated, home: Path) -> Settings:
    return config.load(calibrated.file.read_text(), {}, {"home": home, "threads": 1})


def test_the_log_loss_of_held_out_queries_falls(calibrated: Calibrated) -> None:
    found = calibrated.told["calibration"]
    # Measured: 0.626 → 0.321, and 0.406 for one score for all.
    before, after = found["log_loss"]
    assert before > 0.55 and after < 0.35 < calibrated.told["log_loss_of_one_score"]
    assert found["brier"][1] < 0.6 * found["brier"][0]
    assert found["ece"][1] < 0.03 < found["ece"][0]
    assert (found["queries"], found["relevant"], found["unjudged_irrelevant"]) == (60, 186, True)
    assert calibrated.told["is_better"] is True
    threshold = calibrated.told["threshold"]
    assert threshold["precision"] >= 0.9 and threshold["is_from_few"] is (threshold["documents"] < 30)
    assert len(xml.fromstring(calibrated.plot).findall("{http://www.w3.org/2000/svg}circle")) > 10


def test_the_settings_file_keeps_its_comments(calibrated: Calibrated) -> None:
    text = calibrated.file.read_text()
    assert text.startswith('# mine\n[models.e5]  # small\nref = "builtin:e5"\n\n[models.e5.calibration]\n')
    assert calibrated.told["settings"] in text


async def test_scores_are_probabilities_and_the_order_stays(calibrated: Calibrated, home: Path) -> None:
    settings = settings_of(calibrated, home)
    async with Reranker(settings) as after:
        calibration = after.model.resolution.calibration
        assert calibration is not None
        found = await after.rerank(QUERY, DOCUMENTS)
        raw = await after.rerank(QUERY, DOCUMENTS, raw_scores=True)
        assert raw.cached == len(DOCUMENTS)  # the cache keeps raw values
        few = await after.rerank(QUERY, DOCUMENTS, raw_scores=True, score_threshold=found.results[1].score)
    async with Reranker(Settings(home=home, threads=1)) as before:
        own = await before.rerank(QUERY, DOCUMENTS)
        own_raw = await before.rerank(QUERY, DOCUMENTS, raw_scores=True)
    order = [row.index for row in found.results]
    assert order == [row.index for row in own.results] == [row.index for row in raw.results]
    assert raw.results == own_raw.results
    expected = scores(np.array([row.score for row in raw.results]), calibration.normalization())
    assert [row.score for row in found.results] == pytest.approx(list(expected))
    assert [row.score for row in found.results] != [row.score for row in own.results]
    assert few.results == raw.results[:2]
    assert found.warnings == ()


def test_a_server_answers_calibrated_scores_in_every_dialect(
    calibrated: Calibrated, serve: Callable[..., Program], home: Path
) -> None:
    server = serve("--config", str(calibrated.file))
    ask = {"query": QUERY, "documents": DOCUMENTS}
    jina = post(f"{server.url}/v1/rerank", ask).json()
    by_index = {row["index"]: row["relevance_score"] for row in jina["results"]}
    shown = [by_index[at] for at in range(len(DOCUMENTS))]
    raw = post(f"{server.url}/v1/rerank", {**ask, "raw_scores": True}).json()["results"]
    assert all(0.7 < row["relevance_score"] < 1 for row in raw)
    how = settings_of(calibrated, home).of("e5").calibration.normalization()  # type: ignore[union-attr]
    in_order = np.array([row["relevance_score"] for row in sorted(raw, key=lambda row: row["index"])])
    assert shown == pytest.approx(list(scores(in_order, how)), abs=1e-6)
    for path, body, rows, name in (
        ("/v2/rerank", ask, "results", "relevance_score"),
        ("/voyage/v1/rerank", ask, "data", "relevance_score"),
        ("/rerank", {"query": QUERY, "texts": DOCUMENTS}, None, "score"),
    ):
        answer = post(f"{server.url}{path}", body).json()
        found = {row["index"]: row[name] for row in (answer[rows] if rows else answer)}
        assert [found[at] for at in range(len(DOCUMENTS))] == pytest.approx(shown, abs=1e-6), path
    tei = post(f"{server.url}/rerank", {"query": QUERY, "texts": DOCUMENTS, "raw_scores": True}).json()
    assert {row["index"]: row["score"] for row in tei} == {
        row["index"]: pytest.approx(row["relevance_score"], abs=1e-6) for row in raw
    }

    model = httpx.get(f"{server.url}/v1/status", trust_env=False).json()["models"][0]
    assert model["calibration"]["collection"] == "everyday"
    assert "a probability of relevance" in model["explain"]
    assert model["normalization"] in ("isotonic", "sigmoid")
    port = {"RERANKD_PORT": server.url.rpartition(":")[2]}
    said = rerankd("status", home=home, **port)
    assert "e5: calibrated by" in said.stdout + said.stderr
    inspected = rerankd("inspect", "e5", "--config", str(calibrated.file), home=home)
    assert "calibration: log loss 0.6" in inspected.stdout
    in_json = rerankd("inspect", "e5", "--config", str(calibrated.file), "--json", home=home)
    assert json.loads(in_json.stdout)["calibration"]["queries"] == 60
    recipe = rerankd("recipe", "show", "e5", "--config", str(calibrated.file), home=home)
    assert ".calibration]\n" in recipe.stdout


async def test_a_calibration_of_another_recipe_is_not_used_and_each_answer_says_so(
    calibrated: Calibrated, home: Path
) -> None:
    text = calibrated.file.read_text().replace(
        'ref = "builtin:e5"\n', 'ref = "builtin:e5"\nquery_prefix = "query: query: "\n'
    )
    async with Reranker(config.load(text, {}, {"home": home, "threads": 1})) as reranker:
        result = await reranker.rerank(QUERY, DOCUMENTS)
    assert any("is not used: it was fitted on another file" in warning for warning in result.warnings)
    assert result.normalization == "affine"


async def test_two_calibrated_models_can_be_mixed(home: Path) -> None:
    """Half of each query's candidates are scored by one model and half by another, and ranked together."""
    collection = read(EVERYDAY)
    candidates = bm25.rank(collection, 20, lambda *_: None)
    grades = collection.judgements
    # Without its prefixes and its range, e5 is a model that nobody has tuned: its cosines are near 0.8.
    untuned = {"query_prefix": "", "document_prefix": "", "low": 0.0, "high": 1.0}
    both: list[tuple[dict[tuple[str, str], float], dict[tuple[str, str], float]]] = []
    for scoring in ({}, untuned):
        settings = Settings.model_validate({"home": home, "threads": 1, "scoring": scoring})
        prepared = prepare(settings)
        async with Reranker(settings, prepared=[prepared]) as reranker:

            async def ask(query: str, documents: Sequence[str]) -> list[float | None]:
                rows = (await reranker.rerank(query, documents, raw_scores=True)).results
                return [row.score for row in sorted(rows, key=lambda row: row.index)]

            pairs = await calibrate.score_pairs(collection, candidates, 1, ask, lambda *_: None)
        found = calibrate.fit(pairs, prepared.recipe.normalization)
        keys = [(query, one) for query, documents in candidates.items() for one in documents]
        own = scores(pairs.raw, prepared.recipe.normalization)
        both.append((dict(zip(keys, own, strict=True)), dict(zip(keys, found.held_out, strict=True))))

    def ndcg(values: Callable[[str, str, int], float]) -> float:
        ranking = {
            query: tuple(sorted(documents, key=lambda one: -values(query, one, documents.index(one) % 2)))
            for query, documents in candidates.items()
        }
        (one,) = measure.parse(("nDCG@10",))
        return fmean(measure.of_queries(grades, ranking, one).values())

    alone = max(ndcg(lambda query, one, _, model=model: both[model][0][query, one]) for model in (0, 1))
    mixed = ndcg(lambda query, one, half: both[half][0][query, one])
    calibrated = ndcg(lambda query, one, half: both[half][1][query, one])
    print(f"alone {alone:.3f}, mixed {mixed:.3f}, mixed after calibration {calibrated:.3f}")
    assert mixed < calibrated
    assert alone - calibrated < 0.5 * (alone - mixed)


@pytest.mark.parametrize(
    ("qrels", "says"),
    [
        ("en01\td016\t2\n", "needs judgements for at least 10 queries, .* this collection has 1"),
        ("".join(f"en{at:02}\td{at:03}\t2\n" for at in range(1, 31)), "Only 0 are not relevant"),
    ],
)
def test_a_collection_that_does_not_suffice_is_refused(
    qrels: str, says: str, home: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(EVERYDAY, folder)
    (folder / "qrels" / "test.tsv").write_text(qrels)
    file = tmp_path / "rerankd.toml"
    file.write_text("# mine\n")
    ended = rerankd("eval", str(folder), "--calibrate", "--write", "--config", str(file), home=home)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert re.search(says, ended.stderr), ended.stderr
    assert file.read_text() == "# mine\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--calibrate", "--url", "http://127.0.0.1:1"), "--calibrate needs the model's file"),
        (("--calibrate", "--model", "both"), "both is a cascade. Calibrate the models of its stages"),
        (("--calibrate", "--plot", "no-such-folder/plot.svg"), "--plot: the folder no-such-folder does not"),
        (("--calibrate", "--plot", "."), "--plot: . is a folder"),
        (("--save-run", "."), "--save-run: . is a folder"),
        (("--write",), "--write belongs to --calibrate"),
    ],
)
def test_what_can_not_be_calibrated_is_refused_before_any_work(
    arguments: tuple[str, ...], says: str, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "rerankd.toml"
    file.write_text('[models.both]\nstages = ["a.gguf", {model = "b.gguf", keep = 3}]\n')
    ended = rerankd("eval", str(tmp_path), *arguments, "--config", str(file), home=home)
    assert ended.returncode == 2 and says in ended.stderr, ended.stderr
