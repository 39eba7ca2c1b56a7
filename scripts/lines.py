"""Counts the lines of code in src by folder: `python scripts/lines.py [--against COMMIT]`.

Blank lines, comments and docstrings are not counted; a statement of three lines counts as three. With
`--against`, the counts of a commit are shown before those of the working tree. Files of more than 300 lines
are listed below the table: each needs a reason in its docstring.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PACKAGE = "src/rerankd/"
_LONG = 300
_SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text: str) -> int:
    """Count the lines of code in a Python file. A string that is a whole statement counts as a docstring."""
    found: set[int] = set()
    statement: list[tokenize.TokenInfo] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in _SILENT:
            continue
        if token.type != tokenize.NEWLINE:
            statement.append(token)
            continue
        if any(one.type != tokenize.STRING for one in statement):
            found.update(line for one in statement for line in range(one.start[0], one.end[0] + 1))
        statement = []
    return len(found)


def folder(path: str) -> str:
    """Return the folder under which a file is counted; `(top)` for files of the package itself."""
    first, found, _ = path.removeprefix(_PACKAGE).partition("/")
    return f"{first}/" if found else "(top)"


def counted(files: Iterable[tuple[str, str]]) -> tuple[Counter[str], Counter[str]]:
    """Count the files and the lines of code per folder, from paths and texts."""
    number, lines = Counter[str](), Counter[str]()
    for path, text in files:
        number[folder(path)] += 1
        lines[folder(path)] += code_lines(text)
    return number, lines


def of_tree() -> Iterator[tuple[str, str]]:
    """Yield the package's files in the working tree."""
    for path in (ROOT / _PACKAGE).rglob("*.py"):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def of_commit(commit: str) -> Iterator[tuple[str, str]]:
    """Yield the package's files in a commit. Raises CalledProcessError if the commit does not exist."""
    for path in _git("ls-tree", "-r", "--name-only", commit, _PACKAGE).splitlines():
        if path.endswith(".py"):
            yield path, _git("show", f"{commit}:{path}")


def _git(*arguments: str) -> str:
    return subprocess.run(
        ["git", *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, encoding="utf-8"
    ).stdout


def table(*counts: tuple[Counter[str], Counter[str]]) -> str:
    """Render the counts as a table with a pair of columns each; for two, also the difference in lines."""
    names = sorted({name for number, _ in counts for name in number})
    rows = [["folder", *["files", "lines"] * len(counts)]]
    rows += [[name, *(str(one[name]) for count in counts for one in count)] for name in names]
    rows += [["total", *(str(one.total()) for count in counts for one in count)]]
    if len(counts) == 2:
        (_, before), (_, after) = counts
        rows[0].append("change")
        for row, name in zip(rows[1:-1], names, strict=True):
            row.append(f"{after[name] - before[name]:+}")
        rows[-1] += [f"{after.total() - before.total():+}", f"{after.total() / before.total() - 1:+.1%}"]
    return "\n".join(f"{name:<14}" + "".join(f"{cell:>9}" for cell in cells) for name, *cells in rows)


def long_files(files: Iterable[tuple[str, str]]) -> list[str]:
    """Return the files with more than 300 lines of any kind, longest first."""
    sizes = sorted(((text.count("\n"), path) for path, text in files), reverse=True)
    return [f"{path}: {size} lines" for size, path in sizes if size > _LONG]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--against", metavar="COMMIT", help="also count this commit")
    commit = parser.parse_args().against
    before = [counted(of_commit(commit))] if commit else []
    print(table(*before, counted(of_tree())), *long_files(of_tree()), sep="\n")
