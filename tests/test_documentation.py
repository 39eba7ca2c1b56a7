"""The documentation: examples run, generated parts are up to date, and links have targets."""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shlex
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from rerankd import config
from rerankd.cli import app
from support import GOLDEN, ROOT, environment

sys.path.append(str(ROOT / "scripts"))
import make_docs as made

PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
XLMR = str(GOLDEN / "xlmr-head.gguf")
HERE = "http://127.0.0.1:11440"


def blocks(language: str) -> list[Any]:
    """Return each code block in a language, from all pages."""
    found = []
    fence = re.compile(rf"^ *```{language}\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
    for page in sorted(PAGES):
        for at, code in enumerate(fence.findall(page.read_text(encoding="utf-8"))):
            found.append(pytest.param(textwrap.dedent(code), id=f"{page.stem}-{language}-{at}"))
    return found


def commands(block: str) -> list[str]:
    """Return the commands of a shell block; one may span several lines."""
    found, rest = [], ""
    for line in block.splitlines():
        rest += line + "\n"
        try:
            whole = shlex.split(rest, comments=True)
        except ValueError:  # a quote is still open
            continue
        if whole and not line.endswith("\\"):
            found.append(rest.strip())
        rest = rest if line.endswith("\\") else ""
    assert not rest.strip(), f"this ends in the middle: {rest}"
    return found


CURLS = [
    pytest.param(command, id=f"{block.id}-{at}")
    for block in blocks("sh")
    for at, command in enumerate(commands(block.values[0]))
    if command.startswith("curl ")
]


@contextlib.contextmanager
def serving(model: str, home: Path) -> Iterator[str]:
    """Serve a model as builtin:e5. Yields the server's URL."""
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", "serve", model, "--port", "0", "--alias", "builtin:e5"],
        env=environment(home),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    line = next(line for line in process.stderr if "API endpoint URL" in line)
    yield line.split()[-1].removesuffix("/v1")
    process.terminate()
    process.wait(30)
    process.stderr.close()


@pytest.fixture(scope="module")
def url(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(XLMR, tmp_path_factory.mktemp("home")) as found:
        yield found


@pytest.fixture(scope="module")
def url_of_embedder(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(str(GOLDEN / "bert-embedder.gguf"), tmp_path_factory.mktemp("home")) as found:
        yield found


def test_the_pages_have_examples() -> None:
    assert len(CURLS) >= 10


@pytest.mark.parametrize("command", CURLS)
def test_each_curl_example_succeeds(command: str, url: str, url_of_embedder: str) -> None:
    assert HERE in command
    url = url_of_embedder if "embed" in command.split()[1] else url
    done = subprocess.run(
        ["bash", "-c", command.replace(HERE, url).replace("curl ", "curl -sS --fail-with-body ", 1)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)


@pytest.mark.parametrize("block", blocks("sh"))
def test_each_rerankd_command_exists(block: str) -> None:
    """The name and the options are parsed; the command is not run."""
    for command in commands(block):
        command = re.sub(r'^eval "\$\((.*)\)"', r"\1", command)
        for part in re.split(r" [|>] ", re.sub(r"(^|\s)#.*", "", command)):
            words = shlex.split(part, comments=True)
            if not words or Path(words[0]).name != "rerankd":
                continue
            parser: Any = get_command(app)
            name, rest = "rerankd", words[1:]
            while hasattr(parser, "commands"):
                name, *rest = rest
                parser = parser.commands[name]
            parser.make_context(name, list(rest))


@pytest.mark.parametrize("block", blocks("toml"))
def test_each_settings_example_is_valid(block: str) -> None:
    assert config.load(block, {}, {}) and tomllib.loads(block)


@pytest.mark.parametrize("block", blocks("json"))
def test_each_json_example_is_valid(block: str) -> None:
    assert json.loads(block)


@pytest.mark.parametrize("block", blocks("python"))
def test_each_python_example_runs(block: str, tmp_path: Path) -> None:
    code = block.replace("model.gguf", XLMR)
    asynchronous = "async with" in code
    if asynchronous:
        compile(code, "example", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        at = code.index("async with")
        before, rest = code[:at], code[at:].partition("\n\n")
        code = f"{before}\nimport asyncio\nasync def main():\n" + "\n".join(
            f"    {line}" for line in rest[0].splitlines()
        )
        code += f"\nasyncio.run(main())\n{rest[2]}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(tmp_path, RERANKD_MODEL=XLMR),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_generated_parts_are_up_to_date() -> None:
    for path, text in made.written().items():
        assert path.read_text(encoding="utf-8") == text, "run: make docs"


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub creates them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: page.stem)
def test_each_link_has_a_target(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link
    for named in re.findall(r"`((?:src|docs|deploy|tests|scripts|bench)/[\w./-]+)`", text):
        assert (ROOT / named).exists(), named


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert [name for name in sorted(pages) if f"({name})" not in contents] == []


def test_the_chinese_readme_has_the_same_commands() -> None:
    """The commands and the values to enter are those of the English README."""

    def of(name: str) -> list[str]:
        found = [str(block.values[0]) for block in blocks("sh") if str(block.id).startswith(f"{name}-")]
        return [re.sub(r"\s+#.*", "", line) for block in found for line in block.splitlines() if line]

    english, chinese = of("README"), of("README.zh")
    assert chinese and set(chinese) <= set(english)
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "README.zh.md")]
    measured = [re.findall(r"`(bench/[^`]+)`", text) for text in texts]
    assert measured[0] and measured[0] == measured[1]
    start = english[: english.index(chinese[-1]) + 1]
    assert chinese == start, "the commands of the start are another in README.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_command_beside_a_figure_has_its_programs_options(page: Path) -> None:
    for name, options in re.findall(r"`[^`]*\bbench/(\w+)\.py\b([^`]*)`", page.read_text(encoding="utf-8")):
        # bench/gpu.py is one program in several files.
        programs = "".join(path.read_text() for path in (ROOT / "bench").glob(f"{name}*.py"))
        for option in re.findall(r"--[a-z][\w-]*", options):
            assert f'"{option}"' in programs, f"bench/{name}.py {option}"


def test_the_pictures_are_small() -> None:
    pictures = list((ROOT / "docs" / "pictures").glob("*.png"))
    assert pictures and sum(picture.stat().st_size for picture in pictures) < 300_000


def test_the_tests_named_in_the_threat_model_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs" / "security.md").read_text())
    assert len(named) > 20
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"
    rows = [
        line for line in (ROOT / "docs" / "security.md").read_text().splitlines() if line.startswith("| ")
    ]
    heads = [row for row in rows if row.endswith("| held by |")]
    assert [row for row in rows if "::" not in row and row not in heads] == []


TASKS = re.findall(
    r"^\| (.+?) \| `([\w./]+)::([^`]+)` \|$", (ROOT / "docs" / "architecture.md").read_text(), re.MULTILINE
)


def test_the_table_of_tasks_is_read_whole() -> None:
    assert len(TASKS) == 26


@pytest.mark.parametrize(("task", "path", "symbol"), TASKS, ids=[path for _, path, _ in TASKS])
def test_a_task_is_found_by_its_words(task: str, path: str, symbol: str) -> None:
    """Its words in bold are in the file's name or first line, and the symbol is in the file."""
    text = (ROOT / "src" / "rerankd" / path).read_text(encoding="utf-8")
    findable = f"{path} {text.splitlines()[0]}".lower().replace("_", " ")
    words = re.findall(r"\*\*(.+?)\*\*", task)
    assert words, task
    for word in words:
        assert word.lower() in findable, findable
    if path.endswith(".py"):
        found: ast.AST = ast.parse(text)
        for name in symbol.split("."):
            (found,) = (node for node in ast.iter_child_nodes(found) if name in _names(node))
    else:
        assert symbol in text


def _names(node: ast.AST) -> list[str]:
    """The names that a statement defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return [target.id for target in targets if isinstance(target, ast.Name)]
