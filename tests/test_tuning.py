"""`rerankd tune` without its trainer: which queries and pairs are used, the teacher's labels, and refusals.
What trains is in test_tuning_torch.py."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import checkpoints as made
import late
import listwise_models
import tuning_collection
from rerankd import tuning
from rerankd.errors import CollectionError, ConfigError, MissingExtra, TuningFailed
from rerankd.evaluation.collection import Faults
from rerankd.formats import model_files
from rerankd.progress import silent
from rerankd.recipes import catalog
from rerankd.recipes.partial_recipe import PartialRecipe
from rerankd.recipes.resolve import resolve
from rerankd.rerank_result import RerankResult, ScoredDocument
from rerankd.tuning import base_model, labels, plan, queries, report, training
from rerankd.tuning.job import Job, WorkFolder
from rerankd.tuning.labels import Labels
from rerankd.tuning.trainer import checkpoints
from support import GOLDEN, rerankd

BASE = GOLDEN / "bert-pairs"


def texts(count: int, word: str = "query") -> dict[str, str]:
    return {f"{word}{at}": f"{word} {at}" for at in range(count)}


def test_queries_are_divided_into_three_parts_that_share_no_words() -> None:
    judged = texts(1000)
    parts = queries.divide(judged, {}, has_teacher=False, seed=1)
    assert (len(parts.held_out), len(parts.validation), len(parts.training)) == (200, 80, 720)
    assert {*parts.held_out, *parts.validation, *parts.training} == judged.keys()
    assert parts.held_out_is_judged and parts.validation_is_judged
    backwards = queries.divide(dict(reversed(judged.items())), {}, has_teacher=False, seed=1)
    assert backwards == parts, "the order of the files does not matter"
    assert queries.divide(judged, {}, has_teacher=False, seed=2) != parts


def test_queries_with_the_same_words_are_in_the_same_part() -> None:
    twice = {
        f"{copy}{name}": copy * 3 + text.upper() for name, text in texts(300).items() for copy in (" ", "\n")
    }
    parts = queries.divide(twice, {}, has_teacher=False, seed=1)
    for part in (parts.training, parts.validation, parts.held_out):
        assert {name.strip() for name in part} == {name.strip() for name in part if name[0] == " "}
        assert len(part) == 2 * len({name.strip() for name in part})


def test_few_judged_queries_are_all_held_out() -> None:
    parts = queries.divide(texts(60), texts(200, "other"), has_teacher=True, seed=1)
    assert parts.held_out_is_judged and not parts.validation_is_judged
    assert len(parts.held_out) == 50 and all(one.startswith("query") for one in parts.held_out)
    assert all(one.startswith("other") for one in parts.validation)


def test_a_judged_query_is_not_an_unjudged_one_too() -> None:
    copies = {f"copy-{one}": text for one, text in texts(100).items()}
    parts = queries.divide(texts(100), copies | texts(150, "other"), has_teacher=True, seed=1)
    assert not any(one.startswith("copy-") for one in (*parts.training, *parts.validation))


@pytest.mark.parametrize(
    ("judged", "unjudged", "has_teacher"),
    [(199, 0, False), (199, 1000, False), (0, 199, True), (49, 1000, True), (60, 149, True), (199, 0, True)],
)
def test_too_few_queries_are_refused_with_the_number_that_is_needed(
    judged: int, unjudged: int, has_teacher: bool
) -> None:
    with pytest.raises(CollectionError, match="too few queries") as caught:
        queries.divide(texts(judged), texts(unjudged, "other"), has_teacher=has_teacher, seed=1)
    assert f"{judged} different judged queries" in str(caught.value)
    assert "200 are needed: 100 for training, 50 for" in str(caught.value)


@pytest.mark.parametrize(
    ("judged", "unjudged", "has_teacher"), [(200, 0, False), (0, 200, True), (50, 150, True), (200, 0, True)]
)
def test_as_many_as_are_needed_are_enough(judged: int, unjudged: int, has_teacher: bool) -> None:
    parts = queries.divide(texts(judged), texts(unjudged, "other"), has_teacher=has_teacher, seed=1)
    assert (len(parts.training), len(parts.validation), len(parts.held_out)) == (100, 50, 50)


def read(folder: Path, *, has_teacher: bool, split: str = "train") -> plan.Plan:
    return plan.read(folder, split, Faults(), has_teacher=has_teacher, depth=8, seed=1, progress=silent)


def test_judgements_become_examples_with_five_times_as_many_others(tmp_path: Path) -> None:
    found = read(tuning_collection.write(tmp_path / "c", judged=200), has_teacher=False)
    examples = found.examples(None)
    assert len(examples) == 100 * 8, "two relevant documents of each query, and the six others of it"
    assert {one["label"] for one in examples if "panda" in one["document"]} == {1.0}
    assert {one["label"] for one in examples if "bread" in one["document"]} == {0.0}
    assert examples == found.examples(None)
    held_out = {found.collection.queries[one] for one in found.parts.held_out}
    assert not held_out & {one["query"] for one in examples}
    (validated, *_) = found.validation(None)
    assert sorted(validated["grades"]) == [0, 0, 0, 0, 0, 0, 1, 1]


def test_a_teachers_labels_need_no_judgements(tmp_path: Path) -> None:
    folder = tuning_collection.write(tmp_path / "c", judged=0, unjudged=200)
    found = read(folder, has_teacher=True)

    def label(query: str, document: str) -> float | None:
        return 2.5 if "panda" in document else None if "river" in document else -2.5

    examples = found.examples(label)
    assert {one["label"] for one in examples} == {2.5, -2.5}, "pairs without a label are left out"
    assert not any("river" in one["document"] and one["label"] < 0 for one in examples)
    agreed = found.judgements(found.parts.held_out, label)
    for query, grades in agreed.items():
        assert [found.collection.documents[one].count("panda") for one in grades][:2] == [1, 1], query
        assert [*grades.values()] == list(range(10, 10 - len(grades), -1))
    with pytest.raises(CollectionError, match="0 different judged queries, but"):
        read(folder, has_teacher=False)


def test_queries_of_another_split_are_not_learned(tmp_path: Path) -> None:
    folder = tuning_collection.write(tmp_path / "c", judged=300, unjudged=10)
    lines = (folder / "qrels/train.tsv").read_text().splitlines()
    (folder / "qrels/train.tsv").write_text("\n".join(lines[: 1 + 2 * 210]))
    (folder / "qrels/test.tsv").write_text("\n".join([lines[0], *lines[1 + 2 * 210 :]]))
    found = read(folder, has_teacher=True)
    assert {int(one[1:]) for one in found.collection.queries} == {*range(210), *range(300, 310)}
    with pytest.raises(CollectionError, match="available splits: test, train"):
        read(folder, has_teacher=True, split="dev")


def result(*scores: float, normalization: str = "sigmoid", blank: tuple[int, ...] = ()) -> RerankResult:
    rows = tuple(ScoredDocument(at, score) for at, score in enumerate(scores))
    return RerankResult("teacher", rows, tokens=1, normalization=normalization, blank=blank)


def test_a_label_is_the_logit_of_the_normalized_score() -> None:
    for raw in (-29.0, -3.2, 0.0, 7.1):
        assert labels.logit(1 / (1 + math.exp(-raw)), "sigmoid") == pytest.approx(raw, abs=1e-2)
    assert labels.logit(1.0, "sigmoid") == pytest.approx(29.9, abs=0.1)
    assert labels.logit(0.0, "affine") == pytest.approx(-6.9, abs=0.1)
    assert labels.logit(1.0, "affine") == pytest.approx(6.9, abs=0.1)


def test_labels_survive_a_stop_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "one.labels"
    with Labels(path) as kept:
        kept.add("q", ["a", " ", "b"], result(0.5, 0.0, 0.9, blank=(1,)))
        assert kept.missing("q", ["a", " ", "b", "a"]) == [" "]
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    with Labels(path) as kept:
        assert kept.missing("q", ["a", "b"]) == ["b"], "half a number is no label"
        kept.add("q", ["b"], result(0.9))
    assert path.read_bytes() == whole
    with Labels(path) as kept:
        assert kept.get("q", "b") == labels.logit(0.9, "sigmoid")
        assert kept.get("qb", "") is None


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("xlmr-head.gguf", "it is a GGUF file"),
        ("qwen3-headless", "it is a causal model"),
        ("two-label-reranker", "several labels"),
    ],
)
def test_models_that_can_not_be_tuned_are_refused_with_the_reason(name: str, reason: str) -> None:
    metadata = model_files.read(GOLDEN / name)
    resolved = resolve(metadata, catalog.known(), PartialRecipe())
    refusal = base_model.refusal(metadata, resolved)
    assert refusal is not None and reason in refusal.reason


@pytest.mark.parametrize(
    ("build", "name", "reason"),
    [
        (late.build, "stanford-bert", "late-interaction"),
        (listwise_models.build, "jina-reranker-v3", "listwise model"),
    ],
)
def test_models_without_a_score_for_a_pair_are_refused(
    build: Callable[[str, Path], Path], name: str, reason: str, tmp_path: Path
) -> None:
    metadata = model_files.read(build(name, tmp_path))
    refusal = base_model.refusal(metadata, resolve(metadata, catalog.known(), PartialRecipe()))
    assert refusal is not None and reason in refusal.reason and "--teacher" in refusal.next_step


@pytest.mark.parametrize(
    "name", ["bert-pairs", "xlmr-head", "modernbert-head", "roberta-head", "camembert", "distilbert"]
)
def test_encoders_with_a_head_can_be_tuned(name: str) -> None:
    metadata = model_files.read(GOLDEN / name)
    assert base_model.refusal(metadata, resolve(metadata, catalog.known(), PartialRecipe())) is None


@pytest.mark.parametrize("name", ["BertModel", "BertForMaskedLM"])
def test_an_encoder_without_a_head_can_be_tuned_but_not_served(name: str, tmp_path: Path) -> None:
    metadata = model_files.read(made.copy("bert-pairs", tmp_path / "headless", architectures=[name]))
    resolved = resolve(metadata, catalog.known(), PartialRecipe())
    assert resolved.refusal is not None
    assert base_model.is_headless(metadata) and base_model.refusal(metadata, resolved) is None


def test_a_checkpoint_that_is_not_complete_is_not_resumed(tmp_path: Path) -> None:
    for step in (5, 10, 100):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
            (folder / name).write_bytes(b"x")
        (folder / "trainer_state.json").write_text("{}" if step < 100 else '{"global_st')
    assert checkpoints.latest(tmp_path) == tmp_path / "checkpoint-10"
    assert not (tmp_path / "checkpoint-100").exists(), "the trainer would count it"
    assert checkpoints.latest(tmp_path / "none") is None


def test_a_job_names_what_has_changed(tmp_path: Path) -> None:
    one = Job("base", "f", "d", "mse", 3, 32, 512, 2e-5, 3, 1)
    work = WorkFolder.beside(tmp_path / "out")
    work.begin(one, b"", b"")
    assert Job.read(work.path) == one and work.exists
    other = Job("base", "f", "e", "mse", 3, 16, 512, 2e-5, 3, 1)
    assert other.differences(Job.read(work.path)) == ["data", "batch size"]
    (work.path / "job.json").write_text('{"base"')
    with pytest.raises(ConfigError, match="no job that can be resumed"):
        Job.read(work.path)


def test_a_full_disk_is_refused_before_the_training(tmp_path: Path) -> None:
    training.check_disk(tmp_path / "out", 1000)
    with pytest.raises(TuningFailed, match=r"free, but the checkpoints and the result of 1e\+06 million"):
        training.check_disk(tmp_path / "out", 10**12)


def a_report(base: float, tuned: float, p: float) -> report.Report:
    rows = [report.Row("base", "b", base, 0, 0, 1.0), report.Row("tuned", "t", tuned, 9, 3, p)]
    return report.Report("t", 100, 50, 50, 800, 30, True, 120, False, 1e-6, "an engine", rows)


def test_the_report_says_whether_it_helped() -> None:
    assert "is better than the base (+0.2000 nDCG@10, p 0.0100)" in report.text(a_report(0.5, 0.7, 0.01))
    first = report.Row("first stage", "BM25", 0.5, 0, 0, 1.0)
    headless = a_report(0.5, 0.7, 0.01)
    headless = dataclasses.replace(headless, rows=[first, headless.tuned])
    assert "is better than BM25 (+0.2000" in report.text(headless)
    assert "is worse than the base (-0.2000" in report.text(a_report(0.5, 0.3, 0.01))
    assert "No significant difference (+0.2000" in report.text(a_report(0.5, 0.7, 0.06))


def refused(home: Path, collection: Path, output: Path, *arguments: str, code: int = 2) -> str:
    done = rerankd("tune", str(collection), "--output", str(output), *arguments, home=home)
    assert done.returncode == code, done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr
    assert not output.with_name(f"{output.name}.tuning").exists()
    return done.stderr


def test_the_command_refuses_what_it_can_not_do(home: Path, tmp_path: Path) -> None:
    good = tuning_collection.write(tmp_path / "good", judged=200)
    small = tuning_collection.write(tmp_path / "small", judged=60)
    out = tmp_path / "out"
    base = ("--base", str(BASE))
    assert "60 different judged queries, but 200 are needed" in refused(home, small, out, *base)
    assert "exists already" in refused(home, good, small, *base)
    assert "does not exist" in refused(home, good, tmp_path / "no" / "out", *base)
    for name in ("", "/"):
        done = rerankd("tune", str(good), "--output", name, *base, home=home)
        assert done.returncode == 2 and "exists already" in done.stderr
    assert "reads at most 128 tokens" in refused(home, good, out, *base, "--max-length", "500")
    assert "the same model as --base" in refused(home, good, out, *base, "--teacher", f"{BASE}/../bert-pairs")
    gguf = GOLDEN / "xlmr-head.gguf"
    assert "it is a GGUF file" in refused(home, good, out, "--base", str(gguf), code=3)
    work = WorkFolder.beside(out)
    work.begin(Job("base", "f", "d", "mse", 3, 32, 512, 2e-5, 3, 1), b"", b"")
    done = rerankd("tune", str(good), "--output", str(out), *base, home=home)
    assert done.returncode == 2 and "has an unfinished tuning" in done.stderr
    shutil.rmtree(work.path)


def test_without_pytorch_it_says_what_to_install(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "find_spec", lambda name: None if name == "torch" else object())
    with pytest.raises(MissingExtra, match=r"not installed: torch\. .*pip install 'rerankd\[tune,eval\]'"):
        tuning.check_trainer()
