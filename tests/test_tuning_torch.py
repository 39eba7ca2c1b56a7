"""`rerankd tune` with its trainer, on a CPU with a tiny model. Needs PyTorch: make test-torch."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import checkpoints
import tuning_collection
from rerankd.config import Settings
from rerankd.sync_reranker import SyncReranker
from support import GOLDEN, environment

for _name in ("torch", "sentence_transformers", "accelerate", "datasets"):
    pytest.importorskip(_name, reason="no trainer here: make test-torch")

# Each run imports PyTorch three times and starts three engines, which takes minutes on a busy machine.
TIMEOUT_S = 600
pytestmark = pytest.mark.timeout(4 * TIMEOUT_S)
BASE = GOLDEN / "bert-pairs"
# So slow a training improves over all of its steps, so the best checkpoint is a late one.
SLOW = ("--learning-rate", "1e-4", "--epochs", "6", "--batch-size", "16", "--candidates", "8")
FAST = ("--learning-rate", "1e-3", "--epochs", "2", "--batch-size", "16", "--candidates", "8")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # more would only wait for each other


def rerankd(*arguments: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command and wait for its exit."""
    return subprocess.run(
        [sys.executable, "-m", "rerankd", *arguments],
        env=environment(home, **env),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )


@dataclass
class Tuned:
    """A finished run: its output folder, its report and what it said."""

    output: Path
    report: dict[str, Any]
    said: str

    @property
    def weights(self) -> bytes:
        return (self.output / "model.safetensors").read_bytes()

    def ndcg(self, what: str) -> float:
        return float(next(one["ndcg"] for one in self.report["rows"] if one["what"] == what))


def tune(home: Path, collection: Path, output: Path, *arguments: str, base: Path = BASE) -> Tuned:
    options = ("--base", str(base), "--output", str(output), "--json")
    done = rerankd("tune", str(collection), *options, *arguments, home=home, **ONE_THREAD)
    assert done.returncode == 0, done.stderr
    assert not output.with_name(f"{output.name}.tuning").exists()
    return Tuned(output, json.loads(done.stdout), done.stderr)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuning")


@pytest.fixture(scope="module")
def judged(folder: Path) -> Path:
    return tuning_collection.write(folder / "judged", judged=200)


@pytest.fixture(scope="module")
def slow(home: Path, folder: Path, judged: Path) -> Tuned:
    """A training that nothing has stopped."""
    return tune(home, judged, folder / "slow", *SLOW)


def test_a_model_learns_from_judgements_and_is_better_on_queries_that_it_has_not_seen(slow: Tuned) -> None:
    assert slow.ndcg("tuned") > slow.ndcg("base") + 0.1
    tuned = next(one for one in slow.report["rows"] if one["what"] == "tuned")
    assert tuned["p"] < 0.05 and tuned["better"] > tuned["worse"]
    assert slow.report["verdict"].startswith("The tuned model is better than the base")
    assert (slow.report["training"], slow.report["validation"], slow.report["held_out"]) == (100, 50, 50)
    assert json.loads((slow.output / "rerankd_tuning.json").read_text()) == slow.report
    assert "before training: nDCG@10" in slow.said


def test_served_scores_are_those_of_the_trainers_library(slow: Tuned, home: Path) -> None:
    from sentence_transformers import CrossEncoder

    documents = ["n1 bear panda bamboo", "a loaf of bread", "n1 " * 300]
    pairs = [("where is the panda", one) for one in documents[:2]]
    theirs = CrossEncoder(str(slow.output), device="cpu").predict(pairs)
    with SyncReranker(Settings(home=home, model=(str(slow.output),))) as reranker:
        found = reranker.rerank("where is the panda", documents[:2])
    served = {one.index: one.score for one in found.results}
    assert served == pytest.approx(dict(enumerate(map(float, theirs))), abs=1e-3)
    assert slow.report["served_difference"] < 1e-3


def test_the_result_says_how_it_is_scored(slow: Tuned, home: Path) -> None:
    done = rerankd("inspect", str(slow.output), "--json", home=home)
    assert done.returncode == 0, done.stderr
    assert "the score is its sigmoid" in rerankd("inspect", str(slow.output), home=home).stdout
    assert not (slow.output / "README.md").exists(), "a model card would quote the user's texts"


class Run:
    """A run in the background, stopped after its first checkpoints."""

    def __init__(self, home: Path, collection: Path, output: Path, *arguments: str) -> None:
        options = ("--base", str(BASE), "--output", str(output), *arguments)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "rerankd", "tune", str(collection), *options],
            env=environment(home, **ONE_THREAD),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def stop(self, number: int) -> tuple[int, str]:
        """Send a signal after the second validation; returns the exit code and what it said."""
        assert self._child.stderr is not None
        said, validations = [], 0
        with self._child.stderr as stream:
            for line in stream:
                said.append(line)
                validations += line.startswith("step ")
                if validations == 2:
                    self._child.send_signal(number)
                    validations += 1
        return self._child.wait(TIMEOUT_S), "".join(said)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_training_goes_on_to_the_same_result(
    number: int, slow: Tuned, home: Path, folder: Path, judged: Path
) -> None:
    output = folder / f"stopped-{number}"
    code, said = Run(home, judged, output, *SLOW).stop(number)
    assert not output.exists(), "there is no half of a model"
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
    else:
        assert code == 130 and "Repeat the command with --resume to go on" in said
    again = rerankd("tune", str(judged), "--base", str(BASE), "--output", str(output), *SLOW, home=home)
    assert again.returncode == 2 and "has an unfinished tuning" in again.stderr
    other = rerankd("tune", str(judged), "--base", str(BASE), "--output", str(output), *SLOW, "--resume",
                    "--patience", "5", home=home)  # fmt: skip
    assert other.returncode == 2 and "this has changed: patience" in other.stderr
    resumed = tune(home, judged, output, *SLOW, "--resume")
    assert "before training" not in resumed.said, "it goes on from a checkpoint"
    assert resumed.weights == slow.weights
    assert resumed.report["rows"][2]["ndcg"] == slow.report["rows"][2]["ndcg"]


def test_a_model_learns_from_a_teacher_without_judgements(slow: Tuned, home: Path, folder: Path) -> None:
    unjudged = tuning_collection.write(folder / "unjudged", unjudged=200)
    teacher = ("--teacher", str(slow.output))
    tuned = tune(home, unjudged, folder / "student", *FAST, *teacher)
    assert not tuned.report["is_judged"] and tuned.ndcg("teacher") == 1.0
    assert tuned.ndcg("tuned") > tuned.ndcg("base")
    assert "labelling by the teacher" in tuned.said
    again = tune(home, unjudged, folder / "again", *FAST, *teacher)
    assert "labelling by the teacher" not in again.said, "the labels are kept"
    assert again.weights == tuned.weights, "the same data in the same order"


def test_a_training_without_improvement_ends_early(home: Path, folder: Path, judged: Path) -> None:
    tuned = tune(home, judged, folder / "early", *FAST, "--epochs", "30", "--patience", "2")
    assert tuned.report["is_early"]


def test_an_embedding_model_gets_a_head(home: Path, folder: Path, judged: Path) -> None:
    base = checkpoints.copy("bert-pairs", folder / "embedder", architectures=["BertModel"])
    tensors = checkpoints.read(base / "model.safetensors")
    body = {name.removeprefix("bert."): one for name, one in tensors.items() if name.startswith("bert.")}
    checkpoints.write(base / "model.safetensors", body)
    checkpoints.write_modules(base, ("Transformer", "Pooling"))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text('{"pooling_mode": "mean"}')
    tuned = tune(home, judged, folder / "headed", *FAST, base=base)
    assert "with a new head" in tuned.said
    assert [one["what"] for one in tuned.report["rows"]] == ["first stage", "tuned"]
    assert tuned.report["rows"][1]["p"] < 0.05
    again = tune(home, judged, folder / "headed-again", *FAST, base=base)
    assert again.weights == tuned.weights, "the new head is drawn with a fixed seed"


def test_a_base_model_that_the_trainer_does_not_know_is_reported_before_any_work(
    home: Path, folder: Path, judged: Path
) -> None:
    options = ("--base", str(GOLDEN / "gte"), "--output", str(folder / "never"))
    done = rerankd("tune", str(judged), *options, home=home)
    assert done.returncode == 1, done.stderr
    assert "The trainer can't load" in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "never.tuning").exists()


def test_a_base_model_that_does_not_load_is_reported_before_any_work(
    home: Path, folder: Path, judged: Path
) -> None:
    base = folder / "cut"
    shutil.copytree(BASE, base)
    os.truncate(base / "model.safetensors", (base / "model.safetensors").stat().st_size - 100)
    options = ("--base", str(base), "--output", str(folder / "never"))
    done = rerankd("tune", str(judged), *options, home=home)
    assert done.returncode in (1, 3), done.stderr
    assert "Traceback" not in done.stderr and not (folder / "never.tuning").exists()
