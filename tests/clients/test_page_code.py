"""The programs in the page's Connect part, run as a user would paste them."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import docs
import pytest
import venvs
from live import Server

_CLIENTS = {client["id"]: client for client in json.loads(docs.connect())}
_ENVIRONMENTS = {"cohere": "sdk", "langchain": "langchain", "llamaindex": "llama-index"}


def _code(name: str, server: Server) -> str:
    """Return the program with this server's values, as the page shows it."""
    values = {
        "{address}": server.url,
        "{model}": "my-model",
        "{key}": server.key,
        "{any_key}": server.key or "none",
    }
    code = str(_CLIENTS[name]["code"])
    for name, value in values.items():
        code = code.replace(name, value)
    return code


def _run(*argv: Any) -> str:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "name",
    [
        "cohere",
        pytest.param("langchain", marks=pytest.mark.wide),
        pytest.param("llamaindex", marks=pytest.mark.wide),
    ],
)
def test_a_program_prints_its_rows(name: str, guarded: Server) -> None:
    printed = _run(venvs.python(_ENVIRONMENTS[name]), "-c", _code(name, guarded)).splitlines()
    assert len(printed) == 2


def test_the_command_answers(guarded: Server) -> None:
    assert len(json.loads(_run("bash", "-c", _code("curl", guarded)))["results"]) == 3


def test_every_program_is_run() -> None:
    assert {name for name, client in _CLIENTS.items() if "code" in client} == {*_ENVIRONMENTS, "curl"}
