"""Time budgets of a real service: with a slow engine, with one that never answers, and with one that is
loading.

The engine counts one token per byte, and takes 0.1 s per document. bench/sharing.py measures how exactly
budgets are kept on an idle machine; on a busy one, seconds may be added here. Without a budget, the last
three tests would take minutes.
"""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from served import Service, raw_scores, right, service

DOCUMENTS = [f"document {number:2} " + "x" * 80 for number in range(40)]


def asked(it: Service, budget_ms: int) -> tuple[httpx.Response, float]:
    started = time.perf_counter()
    body = {"query": "q", "documents": DOCUMENTS, "raw_scores": True}
    answer = it.post("/v1/rerank", body, **{"x-rerank-budget-ms": str(budget_ms)})
    return answer, time.perf_counter() - started


def test_the_first_documents_are_scored_within_the_budget(tmp_path: Path) -> None:
    with service(tmp_path, "--delay-ms", "100") as it:
        assert it.rerank(["warm " + "x" * 80] * 2).status_code == 200
        it.rerank([f"{number} " + "x" * 80 for number in range(6)])  # so that its throughput is known
        answer, took_s = asked(it, 1500)
        unscored = answer.json()["meta"]["unscored"]
        scored = len(DOCUMENTS) - len(unscored)
        assert took_s < 1.5 * 1.1 + 1  # of 4 s
        assert 3 <= scored <= 16 and unscored == [*range(scored, len(DOCUMENTS))]
        # The others follow in the order sent, with the lowest score and a warning.
        rows = answer.json()["results"]
        assert [row["index"] for row in rows[scored:]] == unscored
        wanted = right(DOCUMENTS[:scored])
        assert {at: value for at, value in raw_scores(answer).items() if at < scored} == wanted
        assert any("the time budget was exhausted" in one for one in answer.json()["meta"]["warnings"])
        assert it.metric("rerankd_queue_documents") == 0
        assert len(it.rerank(DOCUMENTS[:9]).json()["results"]) == 9


def test_a_hanging_engine_delays_the_answer_only_by_the_budget(tmp_path: Path) -> None:
    with service(tmp_path, "--stall-on", "document  0") as it:
        answer, took_s = asked(it, 700)
        assert answer.status_code == 200 and took_s < 10
        assert 0 in answer.json()["meta"]["unscored"]


def test_a_loading_model_delays_the_answer_only_by_the_budget(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with service(tmp_path, "--load-gate", str(gate), preload="false") as it:
        answer, took_s = asked(it, 500)
        assert answer.status_code == 200 and took_s < 10
        assert answer.json()["meta"]["unscored"] == [*range(len(DOCUMENTS))]
        assert [row["index"] for row in answer.json()["results"]] == [*range(len(DOCUMENTS))]
        gate.touch()
        assert raw_scores(it.rerank(DOCUMENTS)) == right(DOCUMENTS)


def test_documents_before_a_long_one_are_scored_first(tmp_path: Path) -> None:
    """All documents were tokenized before the first one was scored, and a megabyte takes long to tokenize."""
    with service(tmp_path, "--delay-ms", "1") as it:
        long = "panda " * 160_000
        body = {"query": "q", "documents": [*DOCUMENTS[:2], long], "max_chunks_per_doc": 10_000}
        sent = {**body, "budget_ms": 1000, "truncate_prompt_tokens": 120}
        assert it.post("/v1/rerank", sent).json()["meta"]["unscored"] == [2]
