"""A new backend needs only a row in the table: the overlap backend is selected, served, restarted, started
with safer settings, benchmarked and listed without other code. Real commands, services and child
processes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import support
from support import GOLDEN, Program, children, post, until, wait_until_gone

HERE = Path(__file__).parent
REGISTERED = {"PYTHONPATH": str(HERE / "registered")}
HEAD = GOLDEN / "xlmr-head.gguf"
EMBEDDER = GOLDEN / "bert-embedder.gguf"
QUERY = "which planets have rings"
TEXTS = ["trains leave at nine", "rings of planets", "planets which have rings", "gold rings"]

Serve = Callable[..., Program]


def rerankd(*arguments: str, home: Path) -> str:
    """Run a command with the backend registered, and return its output."""
    done = support.rerankd(*arguments, home=home, **REGISTERED)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def start(serve: Serve, tmp_path: Path) -> Serve:
    """Start a service, with the backend registered, in a data folder of its own."""

    def started(model: Path, *arguments: str) -> Program:
        return serve(str(model), *arguments, **REGISTERED, RERANKD_HOME=str(tmp_path))

    return started


def engine(url: str) -> dict[str, Any]:
    (row,) = httpx.get(f"{url}/v1/status", trust_env=False).json()["models"]
    found: dict[str, Any] = row["engine"]
    return found


def asked(url: str, *texts: str, query: str = QUERY) -> dict[str, Any]:
    answer = post(f"{url}/v1/rerank", {"query": query, "documents": texts or TEXTS, "raw_scores": True})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def values(answer: dict[str, Any]) -> list[float]:
    """Return the scores in the order of the documents."""
    rows = sorted(answer["results"], key=lambda row: row["index"])
    return [row["relevance_score"] for row in rows]


def test_it_has_less_than_150_lines() -> None:
    lines = [len((HERE / name).read_text().splitlines()) for name in ("overlap.py", "overlap_program.py")]
    assert sum(lines) < 150


def test_it_is_selected_by_rank_and_serves(start: Serve) -> None:
    url = start(HEAD).url
    row = engine(url)
    assert row["program"] == "Overlap" and "a test wants it" in row["why"]
    answer = asked(url)
    assert [row["index"] for row in answer["results"]] == [2, 1, 3, 0]
    assert values(answer) == [0, 2, 4, 1]


def test_it_is_selected_by_name(start: Serve) -> None:
    assert "OpenVINO" in engine(start(EMBEDDER).url)["program"]
    row = engine(start(EMBEDDER, "--engine", "overlap").url)
    assert row["program"] == "Overlap" and "it is set as engine" in row["why"]


def test_a_child_that_was_killed_is_restarted(start: Serve) -> None:
    program = start(HEAD)
    first = asked(program.url)
    (child,) = children(program.process.pid)
    os.kill(child, signal.SIGKILL)
    wait_until_gone([child])
    assert values(asked(program.url, *TEXTS[::-1])) == values(first)[::-1]
    until(lambda: children(program.process.pid))
    assert children(program.process.pid) != [child]


def test_a_child_that_crashes_at_load_gets_its_safer_settings(start: Serve) -> None:
    url = start(HEAD, "--engine", "overlap", "--overlap-flags=--crash-at-load").url
    why = engine(url)["why"]
    assert "safer settings (careful reading) because its engine crashed while loading" in why
    assert values(asked(url)) == [0, 2, 4, 1]


def test_a_document_that_crashes_it_is_ranked_last(start: Serve) -> None:
    url = start(HEAD, "--engine", "overlap", "--overlap-flags=--crash-on gold").url
    answer = asked(url)
    assert [row["index"] for row in answer["results"]] == [2, 1, 0, 3]
    assert "the engine crashed on it" in json.dumps(answer)


def test_a_document_that_crashes_it_leaves_the_block(start: Serve) -> None:
    flags = ("--overlap-scope", "block", "--overlap-flags=--crash-on gold")
    url = start(HEAD, "--engine", "overlap", *flags).url
    for _ in range(2):  # found by crashes, then known
        answer = asked(url)
        assert [row["index"] for row in answer["results"]] == [2, 1, 0, 3]
        assert values(answer)[:3] == pytest.approx([-2, 0, 2])  # as if it had not been sent
        assert "the engine crashed on it" in json.dumps(answer)
    assert values(asked(url, *TEXTS[:3])) == pytest.approx([-2, 0, 2])


def test_a_block_is_scored_as_a_whole_and_cached_as_a_whole(start: Serve) -> None:
    url = start(HEAD, "--overlap-scope", "block").url
    assert values(asked(url)) == pytest.approx([-1.75, 0.25, 2.25, -0.75])
    assert values(asked(url, *TEXTS[:2])) == pytest.approx([-1, 1])  # the same texts in another block
    assert values(asked(url)) == pytest.approx([-1.75, 0.25, 2.25, -0.75])


def test_tokens_are_counted_by_its_own_tokenizer(start: Serve) -> None:
    words = sum(len(QUERY.split()) + 1 + len(text.split()) for text in TEXTS)
    assert asked(start(HEAD).url)["usage"]["total_tokens"] == words


def test_it_is_listed_with_its_settings(tmp_path: Path) -> None:
    rows = json.loads(rerankd("engine", "list", "--json", home=tmp_path))
    assert {"name": "overlap", "runs_here": True, "used": True} in rows
    assert "overlap" in rerankd("engine", "list", home=tmp_path)
    said = rerankd("serve", "--help", home=tmp_path)
    assert "--overlap-scope" in said and "overlap (encoders in tests)" in " ".join(said.split())


def test_inspect_shows_its_offer_or_refusal(tmp_path: Path) -> None:
    said = rerankd("inspect", str(HEAD), home=tmp_path)
    assert "engine Overlap runs it: a test wants it for every cross-encoder" in said
    assert "engine OpenVINO can run it: the fastest for an encoder on a CPU" in said
    settings = tmp_path / "causal_lm.toml"
    settings.write_text('[scoring]\ntemplate = "{query} {document}"\nlabels = ["a", "b"]')
    model = str(GOLDEN / "qwen3-headless.gguf")
    said = rerankd("inspect", model, "--config", str(settings), home=tmp_path)
    assert "engine Overlap refuses: shared words answer no question; take an encoder" in said
    shown = json.loads(rerankd("inspect", model, "--config", str(settings), "--json", home=tmp_path))
    assert {row["name"]: row["refuses"] for row in shown["engines"]}["overlap"]
    assert [row["name"] for row in shown["engines"] if row["used"]] == ["llama"]


def test_doctor_shows_its_checks(tmp_path: Path) -> None:
    done = support.rerankd("doctor", "--json", home=tmp_path, **REGISTERED)
    assert "shares words" in done.stdout


def test_it_is_benchmarked(tmp_path: Path) -> None:
    flags = ("--documents", "2", "--concurrency", "1", "--words", "5", "--rounds", "1", "--json")
    found = json.loads(rerankd("bench", str(HEAD), *flags, home=tmp_path))
    assert found["cases"][0]["server"] == "Overlap" and found["cases"][0]["pairs_per_s"] > 0
