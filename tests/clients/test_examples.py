"""The programs of examples/ with the built-in model, each in the environment of its framework.

The frameworks are large, so only the two that need none run with every `make test`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import venvs

from support import ROOT, Program, start_serving

EXAMPLES = ROOT / "examples"
BEST = "six minutes"
OF_FRAMEWORKS = {
    "dspy_module.py": "dspy",
    "haystack_pipeline.py": "haystack",
    "langchain_retriever.py": "langchain",
    "llama_index_postprocessor.py": "llama-index",
}


@pytest.fixture(scope="module")
def builtin(home: Path) -> Iterator[Program]:
    """A server with the built-in model and a key, which each example must send."""
    program = start_serving(home, "--api-key", "secret")
    yield program
    program.stop()
    assert program.process.stderr is not None
    program.process.stderr.close()


def printed(name: str, server: Program, *arguments: str, python: str = sys.executable) -> list[str]:
    """Run an example and return the lines it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    told = {
        "RERANK_URL": server.url,
        "RERANKD_API_KEY": "secret",
        "HF_HUB_OFFLINE": "1",
        "DO_NOT_TRACK": "1",
    }
    done = subprocess.run(
        [python, str(EXAMPLES / name), *arguments],
        env={**kept, **told, "HAYSTACK_TELEMETRY_ENABLED": "False"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_plain_python(builtin: Program) -> None:
    lines = printed("plain_python.py", builtin)
    assert len(lines) == 3
    assert "六分钟" in lines[0] or BEST in lines[0]


def test_rag_gains_what_the_documentation_says(builtin: Program) -> None:
    first, second, *prompt = printed("rag.py", builtin)
    before, after = (float(line.split()[-1]) for line in (first, second))
    assert (before, after > 0.58) == (0.274, True)  # docs/evaluation.md
    assert prompt[-1] == "Question: how do I get red wine out of a white cotton shirt"


@pytest.mark.wide
@pytest.mark.parametrize("name", OF_FRAMEWORKS)
def test_a_framework(name: str, builtin: Program) -> None:
    lines = printed(name, builtin, python=str(venvs.python(OF_FRAMEWORKS[name])))
    assert len(lines) == 3
    assert BEST in lines[0]


def test_every_example_is_run_and_short() -> None:
    programs = {path.name: path for path in EXAMPLES.glob("*.py")}
    assert programs.keys() == {"plain_python.py", "rag.py", *OF_FRAMEWORKS}
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name, path in programs.items():
        assert name in readme
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 60, name
