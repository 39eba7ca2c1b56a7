"""Run the programs of a build: log their output, parse its progress, and kill them if rerankd exits."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

from rerankd.process import child
from rerankd.processes import end_session

_PROGRESS = re.compile(r"\[ *(\d+)(?:/(\d+)|%)\]")
_KEPT_LINES = 400
_LAST_WORDS_S = 3.0


def run(
    argv: Sequence[str], log: Path, on_progress: Callable[[int, int], None] = lambda *_: None
) -> tuple[int, list[str]]:
    """Run a program, and return its exit code and its last lines. Its output is appended to `log`.

    If this call ends early, the program and all its child processes are killed. Raises OSError if the log
    can't be written.
    """
    last: deque[str] = deque(maxlen=_KEPT_LINES)
    with log.open("a", encoding="utf-8") as out:
        out.write(f"\n$ {' '.join(argv)}\n")
        process = subprocess.Popen(
            child.die_with_parent(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            assert process.stdout is not None
            _follow(process.stdout, out, last, on_progress)
            return process.wait(), list(last)
        finally:
            _end(process)
            if process.stdout is not None:
                process.stdout.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Stop the program and its child processes. ninja runs each compiler in its own process group; on SIGINT
    it stops them and removes incomplete files."""
    try:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LAST_WORDS_S)
    finally:
        end_session(process.pid)
        process.wait()


def progress_in(line: str) -> tuple[int, int] | None:
    """(pure) Parse a progress line of ninja or make. Returns (done, total), or None."""
    match = _PROGRESS.match(line)
    return (int(match[1]), int(match[2] or 100)) if match else None


def _follow(stream: IO[str], out: IO[str], last: deque[str], on_progress: Callable[[int, int], None]) -> None:
    for line in stream:
        out.write(line)
        out.flush()
        last.append(line.rstrip())
        if found := progress_in(line):
            on_progress(*found)
