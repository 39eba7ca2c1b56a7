"""Clients whose libraries are large: `make test-clients`."""

from __future__ import annotations

from typing import Any

import pytest
import venvs
from live import Run, Server

pytestmark = pytest.mark.wide

_PROGRAMS = [
    "litellm_sdk.py",
    "langchain_rankers.py",
    "llama_index_rankers.py",
    "haystack_rankers.py",
    "npm.mjs",
]


@pytest.mark.parametrize("guarded_by", ["no key", "key"])
@pytest.mark.parametrize("program", _PROGRAMS)
def test_a_client_reads_the_servers_own_answer(
    program: str, guarded_by: str, run: Run, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue("server" if guarded_by == "no key" else "guarded")
    answer: dict[str, Any] = run(program, server)
    if "refused" in answer:
        assert "query is empty" in answer.pop("refused")
    expected = [[index, pytest.approx(score)] for index, score in server.rows()]
    wanted = {row["call"] for row in venvs.TABLE["clients"] if row.get("program") == program}
    assert wanted - set(answer) <= ({"xinference"} if server.key else set())  # it sends no key
    for call, rows in answer.items():
        assert rows == expected[: 2 if call.endswith(", 2") else None], call
