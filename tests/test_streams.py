"""Standard streams: closed, full, or with an old encoding; and Ctrl-C during the start."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support import GOLDEN, environment

XLMR = str(GOLDEN / "xlmr-head.gguf")


def shell(line: str, home: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a line of a shell, in which `rerankd` is ours, with nothing to read."""
    program = shlex.join([sys.executable, "-m", "rerankd"])
    return subprocess.run(
        ["bash", "-c", f'rerankd() {{ {program} "$@"; }}; {line}'],
        env=environment(home, **env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("rerankd list --catalog >&-", 1, "can't be written to standard output: it is closed"),
        ("rerankd list --catalog >/dev/full", 1, "standard output: No space left on device"),
        ("rerankd list --catalog --json >&-", 1, "standard output: it is closed"),
        ("rerankd --version >&-", 1, "standard output: it is closed"),
        ("rerankd rerank q <&-", 2, "The input has no documents"),
        ("rerankd list 2>&-", 0, ""),
        ("rerankd list <&- 2>&-", 0, ""),
        ("rerankd list --catalog <&- >&- 2>&-", 1, ""),
        ("rerankd inspect no-such-file 2>&-", 3, ""),
    ],
)
def test_a_closed_or_full_stream_is_an_error_without_traceback(
    tmp_path: Path, line: str, code: int, says: str
) -> None:
    done = shell(line, tmp_path)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    assert (done.returncode, says in done.stderr) == (code, True), done.stderr


def test_a_reader_that_has_exited_is_not_reported(tmp_path: Path) -> None:
    assert shell("rerankd list --catalog | head -0", tmp_path).stderr == ""


def test_output_for_the_user_is_never_written_to_another_file_or_socket(tmp_path: Path) -> None:
    """A closed descriptor is taken by the next file that is opened."""
    done = shell(f"rerankd inspect {XLMR} >&- 2>&-", tmp_path)
    assert done.returncode == 1
    assert not any(path.is_file() and b"rerankd:" in path.read_bytes() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize("encoding", ["latin-1", "cp932"])
def test_a_terminal_with_an_old_encoding_gets_every_character(tmp_path: Path, encoding: str) -> None:
    text = "Ünïcode 大熊猫 😀"
    documents = tmp_path / "documents.txt"
    documents.write_text(text + "\n", encoding="utf-8")
    line = f"rerankd rerank q {documents} --model {XLMR}"
    done = subprocess.run(
        ["bash", "-c", f'"$0" -m {line} --json', sys.executable],
        env=environment(tmp_path, PYTHONIOENCODING=encoding),
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.decode(encoding))["results"][0]["text"] == text


@pytest.mark.parametrize("arguments", [["list"], ["serve", "--port", "0"], ["rerank", "q"]])
def test_ctrl_c_while_it_imports_leaves_no_traceback(tmp_path: Path, arguments: list[str]) -> None:
    # Python then writes a line for each module it has imported.
    with subprocess.Popen(
        [sys.executable, "-m", "rerankd", *arguments],
        env=environment(tmp_path, PYTHONPROFILEIMPORTTIME="1"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "typing_extensions" in line:  # one of the first that rerankd itself needs
                break
        os.kill(process.pid, signal.SIGINT)
        rest = process.stderr.read()
    assert "Traceback" not in rest and "KeyboardInterrupt" not in rest, rest
    assert process.returncode == -signal.SIGINT
