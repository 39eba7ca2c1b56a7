"""Clients that are small enough to run on every change, against a server without a key and one with."""

from __future__ import annotations

from typing import Any

import pytest
from live import DOCUMENTS, Run, Server


@pytest.fixture(params=["no key", "key"])
def either(request: pytest.FixtureRequest) -> Server:
    """A server with an API key, and one without."""
    return request.getfixturevalue("server" if request.param == "no key" else "guarded")


def _rows(server: Server) -> list[list[Any]]:
    return [[index, pytest.approx(score)] for index, score in server.rows()]


def _texts(server: Server) -> list[str]:
    return [DOCUMENTS[index] for index, _ in server.rows()]


def test_cohere(either: Server, run: Run) -> None:
    answer = run("cohere_sdk.py", either)
    for call in ("v1", "v2", "async v1", "async v2", "objects"):
        assert answer[call] == _rows(either), call
    assert answer["top 2"] == _rows(either)[:2]
    assert answer["documents"] == _texts(either)
    assert answer["billed"] == 1
    assert answer["empty"]["status"] == 400 and "query is empty" in answer["empty"]["message"]
    if either.key:
        assert answer["wrong key"]["type"] == "UnauthorizedError"
        assert "API key" in answer["wrong key"]["message"]


def test_cohere_as_dify_pins_it(either: Server, run: Run) -> None:
    rows = [[*row, text] for row, text in zip(_rows(either), _texts(either), strict=True)]
    assert run("cohere_old.py", either) == rows[:3]


def test_infinity(either: Server, run: Run) -> None:
    answer = run("infinity.py", either)
    assert answer["rows"] == _rows(either)
    assert answer["model"] == "m"
    assert min(answer["tokens"]) > 0


def test_xinference(either: Server, run: Run) -> None:
    answer = run("xinference.py", either)
    assert answer["kind"] == "RESTfulRerankModelHandle"
    assert answer["models"] == ["xlmr-head"]
    assert answer["all"] == _rows(either)
    assert answer["top 2"] == _rows(either)[:2]
    assert answer["documents"] == _texts(either)
    assert "query is empty" in answer["refused"]


def test_rerankers(either: Server, run: Run) -> None:
    for provider, rows in run("rerankers_lib.py", either).items():
        assert rows == _rows(either), provider


def test_mixedbread(either: Server, run: Run) -> None:
    answer = run("mixedbread_sdk.py", either)
    assert answer["all"] == _rows(either)
    assert answer["top 2"] == [
        [*row, text] for row, text in zip(_rows(either)[:2], _texts(either)[:2], strict=True)
    ]
    assert answer["said"][:3] == [2, True, "list"] and answer["said"][3] > 0
    assert answer["refused"][0] == 400 and "query is empty" in answer["refused"][1]


def test_dashscope(either: Server, run: Run) -> None:
    answer = run("dashscope_sdk.py", either)
    assert answer["all"] == _rows(either)
    assert answer["top 2"] == _rows(either)[:2]
    assert answer["documents"] == _texts(either)[:2]
    assert answer["tokens"] > 0 and answer["request_id"].startswith("rerank-")
    assert answer["refused"][:2] == [400, "invalid_request"] and "query is empty" in answer["refused"][2]


def test_ollama(either: Server, run: Run) -> None:
    answer = run("ollama_sdk.py", either)
    assert answer["name"] == "xlmr-head:latest"
    assert answer["shown"] == [["rerank"], "bert", "bert"]
    assert answer["reasons"] == ["load", "unload"]
    while_loaded, for_good, after = answer["loaded"]
    ((name, length, year),) = while_loaded
    assert name == answer["name"] and length > 0 and year < 9999
    assert for_good == [[name, length, 9999]] and after == []
    assert answer["refused"][0] == 400 and "does not support generate" in answer["refused"][1]


def test_voyage(either: Server, run: Run) -> None:
    answer = run("voyage.py", either)
    rows = [[*row, text] for row, text in zip(_rows(either), _texts(either), strict=True)]
    assert answer["all"] == answer["async"] == rows
    assert answer["top 2"] == rows[:2]
    assert answer["tokens"] > 0
    if either.key:
        assert answer["refused"].startswith("AuthenticationError: The API key")
    else:
        assert answer["refused"].startswith("InvalidRequestError: The query is empty")
