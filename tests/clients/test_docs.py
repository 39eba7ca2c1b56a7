"""docs/clients.md and the page match table.toml, and its programs exist."""

from __future__ import annotations

from collections import defaultdict

import docs
import venvs


def test_the_page_is_the_tables() -> None:
    written = docs.PAGE.read_text(encoding="utf-8")
    assert written == docs.page(), "run: python tests/clients/docs.py"


def test_what_the_page_shows_is_the_tables() -> None:
    assert docs.CONNECT.read_text(encoding="utf-8") == docs.connect(), "run: python tests/clients/docs.py"


def test_a_program_has_one_environment_and_each_call_once() -> None:
    rows = [row for row in venvs.TABLE["clients"] if "program" in row]
    environments, calls = defaultdict(set), defaultdict(list)
    for row in rows:
        environments[row["program"]].add(row["environment"])
        calls[row["program"]].append(row["call"])
    programs = {path.name for path in (venvs.HERE / "programs").iterdir() if path.is_file()}
    assert set(environments) == programs
    for program, names in environments.items():
        assert len(names) == 1 and names <= {*venvs.TABLE["environments"], "npm"}
        assert len(calls[program]) == len(set(calls[program]))


def test_every_client_is_told_where_the_server_is() -> None:
    for row in venvs.TABLE["clients"]:
        assert "{url}" in {value for _, value in row["fields"]}, row["name"]
