"""No command ends in a traceback, whatever it is given (see cli_fuzz.py), also as a real process."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

import cli_fuzz
from cli_fuzz import Case
from support import ROOT, environment

_SEED = 1
_SOME = 60
_TIMEOUT_S = 5


def nowhere(folder: Path) -> dict[str, str]:
    """An environment from which nothing can be downloaded."""
    return environment(
        folder / "home",
        HOME=str(folder),
        ALL_PROXY="http://127.0.0.1:9",
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_CONFIG_FILE=os.devnull,
        PIP_RETRIES="0",
        RERANKD_PORT="1",
        COLUMNS="80",
    )


def faults_of(cases: list[Case], folder: Path) -> list[str]:
    """Run the cases; return a sentence for each fault."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "cli_fuzz.py"), str(_TIMEOUT_S)],
        input=cli_fuzz.as_lines(cases),
        env=nowhere(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) == len(cases)
    return [
        f"{one['faults']}: {json.dumps(one['case'])}\n{one['output'][-3000:]}"
        for one in results
        if one["faults"]
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    cli_fuzz.prepare(tmp_path)
    return tmp_path


def test_some_cases_end_without_a_traceback(folder: Path) -> None:
    everything = list(cli_fuzz.cases(folder))
    assert len(everything) > 3000
    assert faults_of(random.Random(_SEED).sample(everything, _SOME), folder) == []


def test_a_model_name_with_a_nul_is_refused(folder: Path) -> None:
    """Only a settings file and a fork can hold one."""
    assert faults_of([Case(("serve", "a\0b", "--port", "0"))], folder) == []


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_all_cases_end_without_a_traceback(folder: Path) -> None:
    assert faults_of(list(cli_fuzz.cases(folder)), folder) == []


def test_a_traceback_would_be_found() -> None:
    assert cli_fuzz.faults(Case(()), {"code": 1, "output": "Traceback (most recent call last):"})
    assert cli_fuzz.faults(Case(()), {"code": -11, "output": ""}) == ["exit code -11", "says nothing"]


@pytest.mark.parametrize(
    ("arguments", "environ"),
    [
        (["show", b"\xff"], {}),
        (["recipe", "new", b"m\xff-refused.gguf"], {}),
        (["recipe", "show", b"m\xff.gguf"], {}),
        (["reload", b"\xff"], {}),
        (["serve", "--host", "a..b"], {}),
        (["status"], {"RERANKD_HOST": "a..b"}),
        (["status"], {"RERANKD_API_KEY": "\udcff"}),
        (["serve", "--port", "0", "x" * 5000], {}),
        (["list"], {"RERANKD_HOME": "/dev/null/x"}),
        (["pull", "bge-reranker-v2-m3"], {"RERANKD_HOME": "/dev/null/x"}),
        (["status"], {"RERANKD_HOST": "a\tb", "COLUMNS": "1"}),
        (["list", "--catalog"], {"COLUMNS": "1", "HOME": ""}),
        (["--help"], {"COLUMNS": "1", "LANG": "C", "PYTHONIOENCODING": "ascii"}),
    ],
    ids=str,
)
def test_a_real_process_ends_without_a_traceback(
    folder: Path, arguments: list[str | bytes], environ: Mapping[str, str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rerankd", *arguments],
        env=nowhere(folder) | environ,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=60,
    )
    assert b"Traceback" not in done.stdout
    assert done.returncode in cli_fuzz.CODES
    assert done.returncode == 0 or done.stdout.startswith((b"rerankd: ", b"Usage: ")), done.stdout
