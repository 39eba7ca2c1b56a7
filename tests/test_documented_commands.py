"""Every code block of the documentation is checked by a test, or is an exception with a reason.

test_documentation.py runs the curl and Python examples, parses the rerankd commands, and reads the settings.
Here the commands that only read are run, and the rest is checked as far as it can be.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import GOLDEN, ROOT, environment, start_serving
from test_documentation import PAGES, blocks, commands

CHECKED = {"sh", "python", "json", "toml", "yaml"}
NOT_CHECKED = {
    "mermaid": "a diagram",
    "text": "a sketch, or what a command prints",
    "nginx": "nginx would have to be installed to check its configuration",
    "py": "needs Ray: tests/test_ray_score.py runs it",
}
NOT_RUN = {
    "git": "the repository's address, or a release",
    "cd": "belongs to git clone",
    "cat": "prints the file of the example",
    "curl": "run in test_documentation.py",
    "sudo": "installs packages on the machine",
    "uvx": "needs the published package",
    "claude": "an MCP client, which is not installed",
    "docker": "needs the published image",
    "serve": "a command of Ray, which make test-ray alone has",
    "cosign": "needs the published image",
}
READS = ("completion", "engine list", "engine path", "list", "ps", "state")


def calls() -> list[Any]:
    """Each command of each shell block, without comments, assignments before it, and redirections."""
    found = []
    for block in blocks("sh"):
        for at, command in enumerate(commands(block.values[0])):
            plain = re.sub(r'^eval "\$\((.*)\)"$', r"\1", re.sub(r"(^|\s)#.*", "", command).strip())
            for part in re.split(r" (?:\||&&) ", plain.partition(" > ")[0]):
                words = shlex.split(part)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    del words[0]
                if words:
                    found.append(pytest.param(words, id=f"{block.id}-{at}-{words[0]}"))
    return found


CALLS = calls()
RUN = [
    one for one in CALLS if " ".join(one.values[0][1:]).startswith(READS) and "rerankd" in one.values[0][0]
]


def test_every_block_has_a_language_that_is_checked() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        for language in fences[::2]:
            assert language in CHECKED | NOT_CHECKED.keys(), f"{page.name}: ```{language}"


@pytest.mark.parametrize("block", blocks("sh"))
def test_a_shell_block_has_no_syntax_error(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("block", blocks("yaml"))
def test_a_yaml_block_is_yaml(block: str) -> None:
    assert all(yaml.safe_load_all(block))


@pytest.mark.parametrize("words", CALLS)
def test_what_a_command_names_exists(words: list[str]) -> None:
    program, *rest = words
    name = Path(program).name
    if name == "make":
        assert re.search(rf"^{rest[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        named = [extra for word in rest for extra in re.findall(r"^rerankd\[(\w+)\]$", word)]
        assert set(named) <= extras.keys()
    elif name == "kubectl":
        for path in re.findall(r"deploy/[\w/.-]+", " ".join(rest)):
            assert (ROOT / path).exists(), path
    elif name == "python" and rest[0] != "-c":
        assert (ROOT / rest[0]).is_file()
    elif name == "python":
        compile(rest[1], "example", "exec")
    else:
        assert name == "rerankd" or name in NOT_RUN, f"{name} is not checked: add it here, with the reason"


def test_there_are_commands_to_run() -> None:
    assert len(RUN) >= 8


@pytest.mark.parametrize("words", RUN)
def test_a_command_that_only_reads_succeeds(words: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rerankd", *words[1:]],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_the_commands_for_a_running_server_succeed(tmp_path: Path) -> None:
    """The block at the top of docs/cli.md, in its order, up to `rerankd stop`."""
    (block,) = (one.values[0] for one in blocks("sh") if one.id == "cli-sh-0")
    (tmp_path / "documents.txt").write_text("panda\nbread\n")
    (tmp_path / "documents.jsonl").write_text('{"text": "panda"}\n')
    program = start_serving(tmp_path, str(GOLDEN / "xlmr-head.gguf"))
    (tmp_path / "rerankd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rerankd "$@"\n')
    (tmp_path / "rerankd").chmod(0o755)
    env = environment(
        tmp_path,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        RERANKD_PORT=program.url.rpartition(":")[2],
    )
    try:
        for command in commands(str(block)):
            once = command.replace("logs -f", "logs")  # it would follow without end
            done = subprocess.run(
                ["bash", "-c", once], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60
            )
            assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert program.process.wait(30) == 0
    finally:
        program.process.kill()
        program.process.wait()
        assert program.process.stderr is not None
        program.process.stderr.close()
