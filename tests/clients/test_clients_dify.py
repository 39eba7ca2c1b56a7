"""Dify reaches rerankd as an OpenAI-API-compatible rerank provider."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from live import DOCUMENTS, Run, Server

from heard import Heard
from rerankd.api.app import create_app
from rerankd.config import Settings


def _check(answer: dict, server: Server) -> None:
    assert answer.get("validated"), answer
    rows = server.rows()
    scores = [score for _, score in rows]
    # Dify spreads the scores of an answer over 0..1 before it compares them with the threshold.
    spread = [(score - scores[-1]) / (scores[0] - scores[-1]) for score in scores]
    expected = [
        [index, pytest.approx(score), DOCUMENTS[index]]
        for (index, _), score in zip(rows, spread, strict=True)
    ]
    assert answer["all"] == expected
    assert answer["threshold"] == [row for row, score in zip(expected, spread, strict=True) if score >= 0.5]
    # With a top_n the rows that came back are the ones that are spread.
    assert [[index, text] for index, _, text in answer["top 2"]] == [
        [index, text] for index, _, text in expected[:2]
    ]


@pytest.mark.parametrize("slash", ["", "/"])
def test_without_a_key(slash: str, server: Server, run: Run) -> None:
    _check(run("dify_openai.py", server, slash), server)


def test_with_a_key(guarded: Server, run: Run) -> None:
    _check(run("dify_openai.py", guarded), guarded)


def test_with_a_wrong_key_validation_fails_with_401(guarded: Server, run: Run) -> None:
    answer = run("dify_openai.py", guarded, key="wrong")
    assert answer["error"].startswith("CredentialsValidateFailedError") and "401" in answer["error"]


def test_the_model_name_of_the_endpoint_is_free(server: Server, run: Run) -> None:
    _check(run("dify_openai.py", server, endpoint_model_name="bge-m3"), server)


@contextlib.contextmanager
def _out_of_time(scores: list[float], home: Path) -> Iterator[Server]:
    """A server whose time budget ends after the first documents, which get these scores."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        app = create_app(reranker=Heard(Settings(home=home), scores))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([bound],))
        thread.start()
        try:
            yield Server(f"http://127.0.0.1:{bound.getsockname()[1]}", "")
        finally:
            server.should_exit = True
            thread.join()


@pytest.mark.parametrize(
    ("scores", "spread"), [([0.9, 0.3], [1, 0.3333, 0, 0]), ([0.9], [1, 0, 0, 0]), ([], [0, 0, 0, 0])]
)
def test_documents_that_were_not_scored_come_last(
    scores: list[float], spread: list[float], run: Run, tmp_path: Path
) -> None:
    """Dify computes with the score of every row, so unscored documents have a number too."""
    with _out_of_time(scores, tmp_path) as server:
        answer = run("dify_openai.py", server)
    assert answer.get("validated"), answer
    rows = [[at, pytest.approx(score, abs=1e-4), DOCUMENTS[at]] for at, score in enumerate(spread)]
    assert answer["all"] == rows
    assert answer["threshold"] == [row for row, score in zip(rows, spread, strict=True) if score >= 0.5]
