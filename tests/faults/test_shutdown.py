"""Shutdown and reload by SIGTERM, a second SIGTERM, SIGHUP and SIGKILL: no process and no file remains."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import MODEL, Service, raw_scores, right, service

import support
from rerankd import processes
from support import until

DOCUMENTS = [f"document {number}" for number in range(40)]


def in_background(
    answers: list[httpx.Response], ask: Callable[..., httpx.Response], *args: Any
) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(ask(*args)))
    thread.start()
    return thread


def under_way(it: Service) -> bool:
    return it.metric("rerankd_queue_requests") == 1


def test_sigterm_finishes_running_requests_and_admits_no_new_ones(tmp_path: Path) -> None:
    with service(tmp_path, "--delay-ms", "100") as it:
        (engine,) = it.engines()
        answers: list[httpx.Response] = []
        thread = in_background(answers, it.rerank, DOCUMENTS)
        until(lambda: under_way(it))
        it.signal(signal.SIGTERM)
        until(lambda: it.get("/ready").status_code == 503)
        refused = it.rerank(["a"])
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "5"
        assert "shutting down" in refused.json()["message"]
        assert it.get("/health").status_code == 200
        thread.join()
        assert raw_scores(answers[0]) == right(DOCUMENTS)
        assert it.ended() == 0
        assert processes.identify(engine) is None
        assert list(it.runtime.iterdir()) == []


def test_a_request_that_does_not_finish_in_time_gets_503(tmp_path: Path) -> None:
    with service(tmp_path, "--delay-ms", "100", drain_timeout_s=0.3) as it:
        answers: list[httpx.Response] = []
        thread = in_background(answers, it.rerank, DOCUMENTS)
        until(lambda: under_way(it))
        it.signal(signal.SIGTERM)
        thread.join()
        assert answers[0].status_code == 503
        assert it.ended() == 0
        assert list(it.runtime.iterdir()) == []


def test_a_second_signal_exits_at_once(tmp_path: Path) -> None:
    with service(tmp_path, "--delay-ms", "100", "--ignore-term", drain_timeout_s=60, stop_timeout_s=60) as it:
        (engine,) = it.engines()

        def ask() -> None:
            with contextlib.suppress(httpx.TransportError):
                assert it.rerank(DOCUMENTS).status_code == 503

        thread = threading.Thread(target=ask)
        thread.start()
        until(lambda: under_way(it))
        it.signal(signal.SIGTERM)
        until(lambda: it.get("/ready").status_code == 503)
        started = time.monotonic()
        it.signal(signal.SIGTERM)
        it.ended()
        assert time.monotonic() - started < 5
        thread.join()
        assert processes.identify(engine) is None
        assert list(it.runtime.iterdir()) == []


def test_a_signal_during_the_start_exits_cleanly(tmp_path: Path) -> None:
    with service(tmp_path, "--slow-load", "60", wait=False) as it:
        until(lambda: it.engines() != [])
        (engine,) = it.engines()
        it.signal(signal.SIGTERM)
        assert it.ended() == 0
        assert processes.identify(engine) is None
        assert list(it.runtime.iterdir()) == []


def test_a_killed_service_leaves_no_engine_and_the_next_start_is_clean(tmp_path: Path) -> None:
    with service(tmp_path, "--ignore-term") as it:
        (engine,) = it.engines()
        it.signal(signal.SIGKILL)
        it.ended()
        until(lambda: processes.identify(engine) is None)
        left = list(it.runtime.iterdir())
        assert len(left) == 1
    with service(tmp_path) as it:
        assert left[0] not in it.runtime.iterdir()
        assert it.rerank(["a"]).status_code == 200


def kill_until_failed(it: Service) -> None:
    """Kill the engine each time it is ready, until the next start is too far away to wait for."""
    while it.get("/health").status_code == 200:
        for engine in it.engines():
            with contextlib.suppress(ProcessLookupError):
                os.kill(engine, signal.SIGKILL)


@pytest.mark.parametrize("how", ["time", "sighup", "reload"])
def test_a_failed_model_recovers(tmp_path: Path, how: str) -> None:
    """By itself after the delay, or at once on request. Neither needs admin_api."""
    with service(tmp_path) as it:
        kill_until_failed(it)
        health = it.get("/health").json()
        assert health["status"] == "failed"
        assert "was terminated by signal 9" in health["engine"]["error"]
        answer = it.rerank(["a"])
        assert answer.status_code == 503
        wait_s = int(answer.headers["retry-after"])
        assert 1 <= wait_s <= 7
        assert "was terminated by signal 9" in answer.json()["message"]
        assert "rerankd reload xlmr-head" in answer.json()["message"]
        assert it.get("/ready").status_code == 503
        if how == "sighup":
            it.signal(signal.SIGHUP)
        elif how == "reload":
            port = it.url.rpartition(":")[2]
            told = support.rerankd("reload", "xlmr-head", home=tmp_path / "home", RERANKD_PORT=port)
            assert told.returncode == 0, told.stderr
            assert "xlmr-head is being reloaded" in told.stderr
            unknown = support.rerankd("reload", "who", home=tmp_path / "home", RERANKD_PORT=port)
            assert (unknown.returncode, "The model 'who' does not exist" in unknown.stderr) == (1, True)
        until(lambda: it.get("/ready").status_code == 200, timeout_s=wait_s + 5)
        assert raw_scores(it.rerank(["a"])) == right(["a"])


@pytest.mark.parametrize("new", [MODEL, MODEL.with_name("modernbert-head.gguf")])
def test_a_model_file_that_was_missing_is_served_again(tmp_path: Path, new: Path) -> None:
    """Also if another file now has its name; that file is prepared again."""
    model = tmp_path / "model.gguf"
    shutil.copyfile(MODEL, model)
    with service(tmp_path, model=model) as it:
        model.unlink()
        (engine,) = it.engines()
        os.kill(engine, signal.SIGKILL)
        until(lambda: "model.gguf is missing" in it.output)
        shutil.copyfile(new, model)
        until(lambda: it.get("/ready").status_code == 200, timeout_s=20)
        assert raw_scores(it.rerank(["a"])) == right(["a"])
        assert it.get("/v1/status").json()["models"][0]["size_bytes"] == new.stat().st_size


def test_a_model_file_replaced_by_a_damaged_one_is_reported(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    shutil.copyfile(MODEL, model)
    with service(tmp_path, model=model) as it:
        model.write_bytes(MODEL.read_bytes()[:3000])
        (engine,) = it.engines()
        os.kill(engine, signal.SIGKILL)
        until(lambda: "it is damaged" in it.get("/health").text, timeout_s=20)
        refused = it.rerank(["a"])
        assert refused.status_code == 503 and "it is damaged" in refused.json()["error"]["message"]
        shutil.copyfile(MODEL, model)
        until(lambda: it.get("/ready").status_code == 200, timeout_s=20)
        assert raw_scores(it.rerank(["a"])) == right(["a"])


def test_a_reload_by_http_replaces_the_engine(tmp_path: Path) -> None:
    with service(tmp_path, alias="mine,other/name", api_key="secret") as it:
        (engine,) = it.engines()
        key = {"x-api-key": "secret"}
        assert it.post("/v1/models/mine/reload", None).status_code == 401
        assert it.post("/v1/models/who/reload", None, **key).status_code == 404
        assert it.post("/v1/models/other/name/reload", None, **key).status_code == 202
        until(lambda: processes.identify(engine) is None)
        until(lambda: it.get("/ready").status_code == 200)
        assert it.rerank(["a"], **key).status_code == 200
        assert it.get("/metrics").status_code == 401
