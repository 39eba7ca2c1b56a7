"""Clients whose libraries are large: `make test-clients`."""

from __future__ import annotations

from typing import Any

import pytest
from live import Run, Server

pytestmark = pytest.mark.wide

_PROGRAMS = [
    ("litellm", "litellm_sdk.py"),
    ("langchain", "langchain_rankers.py"),
    ("llama-index", "llama_index_rankers.py"),
    ("haystack", "haystack_rankers.py"),
    ("npm", "npm.mjs"),
]


@pytest.mark.parametrize("guarded_by", ["no key", "key"])
@pytest.mark.parametrize(("environment", "program"), _PROGRAMS)
def test_a_client_reads_the_servers_own_answer(
    environment: str, program: str, guarded_by: str, run: Run, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue("server" if guarded_by == "no key" else "guarded")
    answer: dict[str, Any] = run(environment, program, server)
    if "refused" in answer:
        assert "query is empty" in answer.pop("refused")
    expected = [[index, pytest.approx(score)] for index, score in server.rows()]
    for call, rows in answer.items():
        assert rows == expected[: 2 if call.endswith(", 2") else None], call
