"""Client behaviour that a service must survive: too many requests, slow requests, invalid requests and
disconnects."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from bodies import CORPUS, bodies
from hypothesis import HealthCheck, given, settings
from served import Service, raw_scores, right, service

import fake_engine
from support import until


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service that must survive all tests."""
    with service(
        tmp_path_factory.mktemp("steady"),
        header_timeout_s=0.5,
        body_timeout_s=0.5,
        max_body_bytes=8 * 2**20,
        max_document_characters=50_000,
    ) as it:
        yield it
        assert "unexpected reason" not in it.output
        assert it.get("/health").json()["engine"]["starts"] == 1


def connect(it: Service) -> socket.socket:
    address = urlsplit(it.url)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def answered(data: bytes, client: httpx.Client) -> httpx.Response:
    answer = client.post("/v1/rerank", content=data)
    assert answer.status_code in (200, 400, 413, 422), (data[:200], answer.text)
    assert isinstance(answer.json(), dict | list)
    if answer.status_code != 200:  # the field of the message depends on the dialect
        assert any(name in answer.json() for name in ("message", "detail", "error")), answer.text
    return answer


@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_every_body_of_the_corpus_gets_an_answer(steady: Service, number: int) -> None:
    with steady.client() as client:
        answered(CORPUS[number], client)


def test_any_body_gets_an_answer(steady: Service) -> None:
    with steady.client() as client:

        @given(bodies)
        @settings(max_examples=200, suppress_health_check=list(HealthCheck), database=None)
        def each(data: bytes) -> None:
            answered(data, client)

        each()


def test_a_body_that_is_too_large_is_refused(steady: Service) -> None:
    answer = steady.rerank(["x" * 9 * 2**20])
    assert answer.status_code == 413
    assert answer.headers["connection"] == "close"


def test_a_document_that_is_too_long_is_named(steady: Service) -> None:
    answer = steady.rerank(["a", "x" * 50_001])
    assert answer.status_code == 400
    assert "Document 1 has 50001 characters" in answer.json()["message"]


def test_a_body_that_never_ends_gets_408(steady: Service) -> None:
    with connect(steady) as client:
        client.sendall(b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        answer = client.makefile("rb").read()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"body_timeout_s" in answer


@pytest.mark.parametrize("sent", [b"", b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\n", b"G"])
def test_headers_that_never_end_close_the_connection(steady: Service, sent: bytes) -> None:
    with connect(steady) as client:
        client.sendall(sent)
        assert client.recv(1000) == b""


def test_headers_of_a_second_request_that_never_end_close_the_connection(steady: Service) -> None:
    with connect(steady) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET")
        assert client.makefile("rb").read().startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("value", ["soon", "-1", "0", "nan", "inf", ""])
def test_an_invalid_deadline_is_refused(steady: Service, value: str) -> None:
    answer = steady.rerank(["a"], **{"x-request-timeout": value})
    assert answer.status_code == 400
    assert "must be a number of seconds" in answer.json()["message"]


def test_cached_documents_are_not_scored_again(steady: Service) -> None:
    documents = ["one", "two", "one", "three"]
    first, second = steady.rerank(documents, "cached?"), steady.rerank([*documents, "four"], "cached?")
    assert "cached" not in first.json()["meta"]
    assert second.json()["meta"]["cached"] == 3
    assert raw_scores(second) == right([*documents, "four"], "cached?")
    assert steady.metric("rerankd_cache_hits_total") >= 3


def test_metrics_tell_what_happened(steady: Service) -> None:
    steady.rerank(["a"])
    text = steady.get("/metrics").text
    for name in (
        'rerankd_requests_total{dialect="jina",key="",model="xlmr-head",status="200"}',
        "rerankd_request_seconds_bucket",
        "rerankd_queue_wait_seconds_count",
        "rerankd_request_documents_sum",
        "rerankd_tokens_total",
        "rerankd_documents_cut_total",
        'rerankd_engine_starts{model="xlmr-head"} 1.0',
        'rerankd_engine_ready{model="xlmr-head"} 1.0',
    ):
        assert name in text
    assert steady.metric("rerankd_engine_memory_bytes") > 2**20


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that takes 20 ms per document."""
    folder = tmp_path_factory.mktemp("slow")
    with service(folder, "--delay-ms", "20", max_queue_documents=100, cache_entries=0) as it:
        yield it


# Long enough for many batches.
DOCUMENTS = [f"document {number} " + "and its words " * 15 for number in range(50)]


@pytest.fixture(scope="module")
def whole_s(slow: Service) -> float:
    """Seconds that DOCUMENTS take on this machine under its present load. A request that ends earlier was not
    scored completely."""
    started = time.monotonic()
    assert slow.rerank(DOCUMENTS).status_code == 200
    return time.monotonic() - started


def test_a_request_past_its_deadline_is_dropped(slow: Service, whole_s: float) -> None:
    started = time.monotonic()
    answer = slow.rerank(DOCUMENTS, **{"x-request-timeout": "0.2"})
    assert answer.status_code == 504
    assert time.monotonic() - started < whole_s
    assert slow.metric("rerankd_queue_requests") == 0
    assert slow.metric("rerankd_deadlines_passed_total") == 1
    # Waiting inputs were dropped, so the engine is free for others.
    assert slow.rerank(["a"], **{"x-request-timeout": "2"}).status_code == 200
    assert slow.get("/health").json()["engine"]["starts"] == 1


def test_a_client_over_its_share_gets_429_with_retry_after(slow: Service) -> None:
    with ThreadPoolExecutor(1) as pool:
        slow.rerank(DOCUMENTS[:10])  # so that its throughput is known
        first = pool.submit(slow.rerank, DOCUMENTS)
        until(lambda: slow.metric("rerankd_queue_requests") == 1)
        refused = slow.rerank(DOCUMENTS)
        assert refused.status_code == 429
        wait_s = int(refused.headers["retry-after"])
        assert 1 <= wait_s <= 3
        assert re.match(
            r"This client has used its share of the queue \(\d+ documents\)", refused.json()["message"]
        )
        # The rest is for other clients: a proxy on this machine may name one.
        other = slow.rerank(["a", "b"], **{"x-forwarded-for": "203.0.113.9"})
        assert other.status_code == 200 and not first.done()
        time.sleep(wait_s)
        assert slow.rerank(DOCUMENTS).status_code == 200
        assert raw_scores(first.result()) == right(DOCUMENTS)


def test_a_disconnect_removes_the_request_from_the_queue(slow: Service, whole_s: float) -> None:
    body = json.dumps({"query": "q", "documents": DOCUMENTS}).encode()
    with connect(slow) as client:
        client.sendall(
            b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body
        )
        until(lambda: slow.metric("rerankd_queue_requests") == 1)
    until(lambda: slow.metric("rerankd_queue_requests") == 0, 0.9 * whole_s)
    assert 'status="499"' in slow.get("/metrics").text
    assert slow.rerank(["a"]).status_code == 200


def test_a_small_request_does_not_wait_for_a_large_one(slow: Service) -> None:
    with ThreadPoolExecutor(1) as pool:
        large = pool.submit(slow.rerank, DOCUMENTS)
        until(lambda: slow.metric("rerankd_queue_requests") == 1)
        assert slow.rerank(["a"]).status_code == 200
        assert not large.done()


@pytest.mark.parametrize(
    ("how", "status"),
    [("nan", 502), ("garbage", 502), ("close", 503)],  # all of them: test_supervisor.py
)
def test_an_invalid_engine_answer_gives_no_score(tmp_path: Path, how: str, status: int) -> None:
    with service(tmp_path, "--bad-scores", how) as it:
        answer = it.rerank(["a"])
        assert answer.status_code == status
        assert ("retry-after" in answer.headers) == (status == 503)
        assert "results" not in answer.json()
        assert "unexpected reason" not in it.output


def test_a_request_whose_engine_crashes_is_answered_by_the_next_one(tmp_path: Path) -> None:
    calls = fake_engine.CALLS_AT_LOAD + 2
    with service(tmp_path, "--crash-after", str(calls), "--only-first", str(tmp_path / "first")) as it:
        documents = [f"document {number}" for number in range(200)]
        answer = it.rerank(documents)
        assert raw_scores(answer) == right(documents)
        assert it.get("/health").json()["engine"]["starts"] == 2
        assert it.metric("rerankd_engine_lost") == 1
        assert it.metric("rerankd_retries_total") >= 1


def test_a_hanging_engine_delays_requests_but_fails_none(tmp_path: Path) -> None:
    calls = str(fake_engine.CALLS_AT_LOAD + 1)
    flags = ("--hang-after", calls, "--only-first", str(tmp_path / "first"))
    with service(tmp_path, *flags, health_poll_s=0.2) as it, ThreadPoolExecutor(8) as pool:
        many = [[f"document {number} of {client}" for number in range(20)] for client in range(8)]
        answers = list(pool.map(it.rerank, many))
        assert [raw_scores(answer) for answer in answers] == [right(documents) for documents in many]


def test_idle_and_slow_connections_do_not_block_others(tmp_path: Path) -> None:
    with service(tmp_path, header_timeout_s=3, body_timeout_s=3) as it, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(it)) for _ in range(500)]
        slow = [stack.enter_context(connect(it)) for _ in range(200)]
        stop = threading.Event()

        def drip() -> None:
            head = b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n"
            head += b" " * 5000
            for at in range(len(head)):
                for client in slow:
                    with contextlib.suppress(OSError):
                        client.send(head[at : at + 1])
                if stop.wait(0.1):
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            took = []
            for number in range(20):
                started = time.monotonic()
                assert it.rerank([f"beside {number}"]).status_code == 200
                took.append(time.monotonic() - started)
            assert sorted(took)[-2] < 1
            for client in idle:  # closed after header_timeout_s
                assert client.recv(1) == b""
        finally:
            stop.set()
            dripping.join()


def test_requests_succeed_with_a_full_log_disk(tmp_path: Path) -> None:
    logs = tmp_path / "home" / "logs"
    logs.mkdir(parents=True)
    (logs / "xlmr-head.log").symlink_to("/dev/full")
    with service(tmp_path, "--crash-after", "8") as it:
        for number in range(12):
            assert it.rerank([f"document {number}"]).status_code == 200
