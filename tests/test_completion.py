"""Shell completion in the real shells, on a terminal; and every value that it offers is accepted."""

from __future__ import annotations

import os
import pty
import select
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from support import rerankd

# Each shell without the user's own configuration, and the line that the help tells the user to add.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(rerankd completion bash)"'),
    "zsh": (
        ["zsh", "-f", "-i"],
        'autoload -Uz compinit; compinit -u -D; eval "$(rerankd completion zsh)"',
    ),
    "fish": (["fish", "--no-config", "-i"], "rerankd completion fish | source"),
}


class Terminal:
    """A shell on a terminal of its own, where `rerankd` is the program under test."""

    def __init__(self, shell: str, home: Path, folder: Path) -> None:
        argv, setup = SHELLS[shell]
        (folder / "bin").mkdir()
        program = folder / "bin" / "rerankd"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m rerankd "$@"\n')
        program.chmod(0o755)
        (folder / "documents.txt").write_text("a bear")
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.environ |= {
                "PATH": f"{folder}/bin:{os.environ['PATH']}",
                "HOME": str(folder),
                "RERANKD_HOME": str(home),
                "TERM": "xterm",
            }
            os.execvp(argv[0], argv)
        self._send(f"{setup}\n")
        self._send("echo REA''DY\n")
        self._until("READY")

    def complete(self, line: str, expected: str) -> str:
        """Type a line and a tab; returns what the terminal shows, up to the expected text."""
        self._send(f"{line}\t")
        return self._until(expected)

    def close(self) -> None:
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._terminal)

    def _send(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def _until(self, expected: str) -> str:
        seen, end = "", time.monotonic() + 20
        while expected not in seen and time.monotonic() < end:
            if select.select([self._terminal], [], [], 0.1)[0]:
                seen += os.read(self._terminal, 65536).decode(errors="replace")
        assert expected in seen, seen
        return seen


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("rerankd doct", "doctor"),
        ("rerankd serve builtin:", "e5"),
        ("rerankd pull bge-reranker-v2-m", "m3"),
        ("rerankd serve --engine open", "vino"),
        ("rerankd serve --engine=open", "vino"),
        ("rerankd serve --trust", "-remote-code"),
        ("rerankd recipe show granite-emb", "edding-reranker-english-r2"),
        ("rerankd rerank q documents.t", "xt"),
    ],
)
def test_a_tab_completes(shell: str, line: str, expected: str, home: Path, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    terminal = Terminal(shell, home, tmp_path)
    try:
        terminal.complete(line, expected)
    finally:
        terminal.close()


def test_invalid_settings_disturb_no_completion(tmp_path: Path) -> None:
    (tmp_path / "rerankd.toml").write_text("prot = 1")
    ended = rerankd(
        home=tmp_path,
        RERANKD_CONFIG=str(tmp_path / "rerankd.toml"),
        _RERANKD_COMPLETE="complete_fish",
        _TYPER_COMPLETE_FISH_ACTION="get-args",
        _TYPER_COMPLETE_ARGS="rerankd serve b",
    )
    assert (ended.returncode, ended.stderr) == (0, "")
