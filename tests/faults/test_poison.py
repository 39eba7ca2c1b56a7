"""Documents and queries that crash the engine, with default settings: no other client loses an answer."""

from __future__ import annotations

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from served import Service, raw_scores, right, service

from support import until

GOOD = [f"document {number}" for number in range(20)]


def restarts(it: Service) -> int:
    until(lambda: it.get("/ready").status_code == 200)
    return int(it.metric("rerankd_engine_starts")) - 1


def check(answer: httpx.Response, documents: list[str], bad: str, says: str) -> None:
    """All documents have the right scores except those that contain `bad`, which come last with the
    reason."""
    assert answer.status_code == 200, answer.text
    found = raw_scores(answer)
    culprits = [at for at, text in enumerate(documents) if bad in text]
    for at, value in right(documents).items():
        assert (found[at] == value) == (at not in culprits)
    last = [row["index"] for row in answer.json()["results"]][-len(culprits) :]
    assert sorted(last) == culprits
    assert says in answer.headers.get("x-rerankd-warning", "") + answer.text


def among(bad: str) -> list[str]:
    return [*GOOD[:7], f"a {bad} document", *GOOD[7:]]


@pytest.mark.parametrize(
    ("flag", "says"),
    [("--crash-on", "crashed on it twice"), ("--error-on", "returned an error for it twice")],
)
def test_a_document_that_crashes_the_engine_is_quarantined(tmp_path: Path, flag: str, says: str) -> None:
    documents = among("POISON")
    with service(tmp_path, flag, "POISON") as it:
        check(it.rerank(documents), documents, "POISON", says)
        first = restarts(it)
        assert first <= 1 + math.log2(len(documents))
        for query in ("q", "another"):
            answer = it.rerank(documents, query)
            assert answer.status_code == 200
            assert raw_scores(answer).items() >= {(0, right(documents, query)[0])}
        alone = it.rerank(["POISON", "a POISON document"])
        assert alone.status_code == 200
        assert raw_scores(it.rerank(GOOD)) == right(GOOD)
        assert it.get("/health").json()["status"] == "ok"
        known = restarts(it)
        it.rerank(["POISON", "a POISON document"])
        assert restarts(it) == known
    # The quarantine survives a restart of the service.
    with service(tmp_path, flag, "POISON") as it:
        check(it.rerank(documents), documents, "POISON", says)
        assert restarts(it) == 0


def test_several_bad_documents_and_other_clients_get_their_scores(tmp_path: Path) -> None:
    documents = [*GOOD[:3], "ONE", *GOOD[3:9], "TWO", *GOOD[9:]]
    with service(tmp_path, "--crash-on", "ONE TWO", "--delay-ms", "5") as it:
        stop = threading.Event()
        answers: list[tuple[list[str], httpx.Response]] = []

        def client(number: int) -> None:
            turn = 0
            while not stop.is_set():
                turn += 1
                mine = [f"{number} {turn} {at}" for at in range(12)]
                answers.append((mine, it.rerank(mine)))

        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client, number) for number in range(4)]
            found = it.rerank(documents)
            stop.set()
            for one in clients:
                one.result()
        assert found.status_code == 200, found.text
        scored = raw_scores(found)
        assert [at for at, value in right(documents).items() if scored[at] != value] == [3, 10]
        assert answers
        for mine, answer in answers:
            assert raw_scores(answer) == right(mine)


def test_a_query_that_crashes_the_engine_is_refused_and_blames_no_document(tmp_path: Path) -> None:
    with service(tmp_path, "--crash-on-query", "POISON") as it:
        answer = it.rerank(GOOD, "a POISON query")
        assert answer.status_code == 422
        assert "failed twice on this query" in answer.json()["message"]
        assert restarts(it) <= 1 + math.log2(len(GOOD))
        known = restarts(it)
        assert it.rerank(GOOD[:2], "a POISON query").status_code == 422
        assert raw_scores(it.rerank(GOOD)) == right(GOOD)
        assert restarts(it) == known


def test_a_document_that_crashes_the_tokenizer_does_not_fail_the_others(tmp_path: Path) -> None:
    long = "POISON " + "word " * 2000
    documents = [*GOOD, long]
    with service(tmp_path, "--crash-on-count", "POISON", "--crash-on", "POISON") as it:
        answer = it.rerank(documents)
        assert answer.status_code == 200, answer.text
        assert {at: value for at, value in raw_scores(answer).items() if at < 20} == right(GOOD)


def test_an_external_kill_quarantines_no_document(tmp_path: Path) -> None:
    with service(tmp_path, "--kill-on", "POISON", request_timeout_s=4) as it:
        assert it.rerank(["a POISON document"]).status_code == 503
        assert not list((tmp_path / "home" / "state").glob("quarantine.json"))


def test_an_engine_with_only_errors_is_replaced_and_its_message_stays_in_the_log(
    tmp_path: Path,
) -> None:
    errors = tmp_path / "errors"
    with service(tmp_path, "--errors", str(errors)) as it:
        assert it.rerank(["a"]).status_code == 200
        errors.touch()
        answer = it.rerank(["b"])
        assert answer.status_code in (502, 503)
        assert "error" in answer.text and "CUDA" not in answer.text
        assert "CUDA error: something broke" in it.output
        errors.unlink()
        until(lambda: it.get("/ready").status_code == 200, timeout_s=20)
        assert raw_scores(it.rerank(["b", "c"])) == right(["b", "c"])
        assert it.metric("rerankd_engine_lost") >= 1


def test_a_document_on_which_the_engine_hangs_is_found_within_several_requests(tmp_path: Path) -> None:
    """The timeouts are short so that the test is: a hang is detected only after they have passed."""
    documents = ["a", "HANG", "b"]
    limits = {"request_timeout_s": 2, "hang_margin_s": 0.5, "health_poll_s": 0.5}
    with service(tmp_path, "--stall-on", "HANG", **limits) as it:
        for _ in range(8):
            answer = it.rerank(documents)
            if answer.status_code == 200:
                break
            assert answer.status_code in (503, 504)
        check(answer, documents, "HANG", "hung on it twice")
        assert raw_scores(it.rerank(GOOD)) == right(GOOD)
