"""What a terminal shows: help and tables at any width, colours, progress."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import pytest

import cli_fuzz
from fake_hub import fake_hub
from rerankd import locks
from rerankd.cli import tables
from rerankd.cli.progress_bar import numbers
from rerankd.hub import listing
from support import GOLDEN, environment, rerankd, start_serving, until

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_GB = 10**9


def on_terminal(*arguments: str, home: Path, columns: int, stdin: str = "", **env: str) -> str:
    """The output of a command whose standard output and error are a terminal of this width."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environ = environment(home, **{"TERM": "xterm-256color", **env})
    for name in {"COLUMNS", "NO_COLOR"} - env.keys():
        environ.pop(name, None)
    process = subprocess.Popen(
        [sys.executable, "-m", "rerankd", *arguments],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=slave,
        text=True,
    )
    os.close(slave)
    seen = b""

    def read() -> None:
        nonlocal seen
        with contextlib.suppress(OSError):  # the other end of the terminal is closed
            while data := os.read(master, 65536):
                seen += data

    reader = threading.Thread(target=read)
    reader.start()
    process.communicate(stdin, timeout=60)
    reader.join()
    os.close(master)
    return seen.decode().replace("\r\n", "\n")


def words(text: str) -> str:
    return " ".join(_COLOUR.sub("", text).split())


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_help_is_whole_at_every_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of commands in the list, which ended in "..."."""
    monkeypatch.setenv("COLUMNS", str(columns))
    wide: dict[tuple[str, ...], str] = {}
    for path, command in cli_fuzz.commands().items():
        context = command.make_context("rerankd", [], resilient_parsing=True)
        text = command.get_help(context)
        if columns >= 40:
            # An option and its choices are one word, which the terminal wraps.
            lines = (line for line in text.splitlines() if not line.strip().startswith("-"))
            assert max(map(len, lines)) <= min(columns, 100), path
        # What is cut is gone at one width and there at another.
        first = (command.help or "").partition("\n\n")[0]
        assert first.replace(" ", "").replace("\n", "") in re.sub(r"\s", "", text), path
        wide[path] = text
    listed = re.sub(r"\s", "", wide[()])
    for path, command in cli_fuzz.commands().items():
        if len(path) == 1:
            about = (command.help or "").partition("\n\n")[0]
            assert re.sub(r"\s", "", about) in listed, path


@pytest.mark.parametrize("columns", [1, 20, 40, 80, 200])
def test_names_are_whole_at_every_width(home: Path, columns: int) -> None:
    shown = on_terminal("list", "--catalog", home=home, columns=columns)
    for row in listing.pullable():
        assert row["name"] in shown


def test_colours_are_only_on_a_terminal_that_wants_them(home: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    rerankd("key", "new", "a", "--file", str(keys), home=home)
    arguments = ("key", "list", "--file", str(keys))
    assert _COLOUR.search(on_terminal(*arguments, home=home, columns=80))
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        master = on_terminal(*arguments, home=home, columns=80, **env)
        assert "\x1b[3" not in master and "\x1b[9" not in master
    assert "\x1b" not in rerankd(*arguments, home=home, FORCE_COLOR="").stdout


def test_a_document_moves_no_cursor(home: Path) -> None:
    shown = on_terminal("rerank", "q", home=home, columns=80, stdin="\x1b[2Jbear\n", RERANKD_PORT="9")
    assert "\x1b[2J" not in shown
    assert "\\x1b[2Jbear" in words(shown)


def test_a_cell_breaks_no_row(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_rows([("name", "text"), ("a\tb\nc", "one\ttwo")])
    assert capsys.readouterr().out == "a b c\tone\ttwo\n"


@pytest.mark.parametrize(
    ("done", "total", "speed", "left_s", "shown"),
    [
        (int(1.2 * _GB), int(4.3 * _GB), 40e6, 83, "1.12 GiB of 4 GiB, 38.1 MiB/s, 1:23 left"),
        (0, 4 * _GB, None, None, "0 bytes of 3.73 GiB"),
        (4 * _GB, 4 * _GB, 40e6, 0, "3.73 GiB"),
        (1, 4 * _GB, 1, 7384, "1 bytes of 3.73 GiB, 1 bytes/s, 2:03:04 left"),
        (3, 12, None, None, "25%"),
        (0, 1, None, None, "…"),
        (1, 1, None, None, "done"),
        (0, 0, None, None, "…"),
    ],
)
def test_progress_is_in_numbers(
    done: int, total: int, speed: float | None, left_s: float | None, shown: str
) -> None:
    assert numbers(done, total, speed, left_s) == shown


def test_ctrl_c_in_a_pull_says_what_is_kept_and_how_to_resume(tmp_path: Path) -> None:
    data = (GOLDEN / "xlmr-head.gguf").read_bytes()
    release = threading.Event()
    with fake_hub(repos={"org/repo": {"model-Q8_0.gguf": data}}, hang=release) as hub:
        process = subprocess.Popen(
            [sys.executable, "-m", "rerankd", "pull", "hf:org/repo", "--no-check"],
            env=environment(tmp_path, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / "hf")),
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            until(
                lambda: any(
                    path.stat().st_size == len(data) - 1 for path in tmp_path.glob("models/.pull/*/*.part")
                ),
                timeout_s=30,
            )
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=30)
        finally:
            release.set()
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert said.splitlines()[-1] == (
        "Interrupted. 832 KiB of 832 KiB are kept. To resume: rerankd pull hf:org/repo"
    )


def test_remove_says_that_the_model_is_still_served(tmp_path: Path) -> None:
    folder = tmp_path / "models" / "bge-reranker-v2-m3"
    folder.mkdir(parents=True)
    shutil.copy(GOLDEN / "xlmr-head.gguf", folder / "bge-reranker-v2-m3-Q8_0.gguf")
    program = start_serving(tmp_path, "bge-reranker-v2-m3")
    try:
        port = program.url.rpartition(":")[2]
        ended = rerankd("remove", "bge-reranker-v2-m3", home=tmp_path, RERANKD_PORT=port)
    finally:
        program.stop()
        assert program.process.stderr is not None
        program.process.stderr.close()
    assert "still serves bge-reranker-v2-m3 from memory" in ended.stderr


def test_an_unfinished_copy_is_listed_and_can_be_removed(tmp_path: Path) -> None:
    left = tmp_path / "models" / ".patched" / ".making-abc"
    left.mkdir(parents=True)
    (left / "m.gguf").write_bytes(b"x" * 2048)
    assert f"rerankd remove {left}" in rerankd("list", home=tmp_path).stderr
    with locks.held(left.parent / ".lock"):  # it is being made
        assert str(left) not in rerankd("list", home=tmp_path).stderr
    assert rerankd("remove", str(left), home=tmp_path).returncode == 0
    assert not left.exists()
