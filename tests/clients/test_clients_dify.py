"""Dify reaches rerankd as an OpenAI-API-compatible rerank provider."""

from __future__ import annotations

import pytest
from live import DOCUMENTS, Run, Server


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
