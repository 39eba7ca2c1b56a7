"""scripts/lines.py counts lines of code without blank lines, comments and docstrings."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "scripts"))

import lines

_TEXT = '''"""What this file
is for."""

import os  # counts once

NAMES = (
    "a",  # a comment of its own

    # does not count
    "b",
)
"""What NAMES are."""


def f() -> str:
    """What it returns."""
    text = """two
lines"""
    return text
'''


def test_blank_lines_comments_and_docstrings_are_not_counted() -> None:
    assert lines.code_lines(_TEXT) == 1 + 4 + 1 + 2 + 1
    assert lines.code_lines("") == 0
    assert lines.code_lines('"""Only words."""\n# and a comment\n') == 0


@pytest.mark.parametrize(
    ("path", "folder"),
    [
        ("src/rerankd/errors.py", "(top)"),
        ("src/rerankd/api/app.py", "api/"),
        ("src/rerankd/backends/llama/build/run.py", "backends/"),
    ],
)
def test_a_file_is_counted_in_its_top_folder(path: str, folder: str) -> None:
    assert lines.folder(path) == folder


def test_the_table_compares_two_counts() -> None:
    before = lines.counted([("src/rerankd/a.py", "a = 1\n" * 8), ("src/rerankd/api/b.py", "b = 1\n" * 2)])
    after = lines.counted([("src/rerankd/a.py", "a = 1\n" * 5)])
    rows = [row.split() for row in lines.table(before, after).splitlines()]
    assert rows == [
        ["folder", "files", "lines", "files", "lines", "change"],
        ["(top)", "1", "8", "1", "5", "-3"],
        ["api/", "1", "2", "0", "0", "-2"],
        ["total", "2", "10", "1", "5", "-5", "-50.0%"],
    ]


def test_long_files_are_named() -> None:
    files = [("a.py", "\n" * 300), ("b.py", "\n" * 301), ("c.py", "\n" * 900)]
    assert lines.long_files(files) == ["c.py: 900 lines", "b.py: 301 lines"]


def test_the_package_itself_is_counted() -> None:
    number, found = lines.counted(lines.of_tree())
    assert isinstance(found, Counter)
    assert number["api/"] > 10 and found["api/"] > 10 * number["api/"]
