"""Run the trainer as a child process, and receive its messages."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rerankd import files, machine
from rerankd.errors import TuningFailed
from rerankd.process.child import die_with_parent
from rerankd.progress import size_words
from rerankd.tuning import messages
from rerankd.tuning.job import WorkFolder, needed_bytes

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")
_QUOTED_LINES = 5

Message = Mapping[str, Any]


def probe(base: Path, max_length: int, log: Path) -> Message:
    """Load the base model once. Returns the message LOADED. Raises TuningFailed."""
    arguments = [str(base), "--probe", "--max-length", str(max_length)]
    with _started(arguments, log) as child:
        last = _last(child, lambda message: None)
    if last is None or last["event"] != messages.LOADED:
        reason = last["reason"] if last is not None else _exit(child)
        raise TuningFailed(f"The trainer can't load {base}: {reason}{_quoted(log)}")
    return last


def check_disk(output: Path, parameters: int) -> None:
    """Raise TuningFailed unless the disk has room for the checkpoints and the result."""
    needed, free = needed_bytes(parameters), files.free_bytes(output.parent)
    if free < needed:
        raise TuningFailed(
            f"The disk of {output.parent} has {size_words(free)} free, but the checkpoints and the result of "
            f"{parameters / 1e6:.3g} million parameters need up to {size_words(needed)}. Free some space, or "
            "choose an --output on another disk."
        )


def train(work: WorkFolder, report: Callable[[Message], None], say: Callable[[str], None]) -> Message:
    """Run the job of a work folder. Returns DONE, or STOPPED after SIGINT or SIGTERM, at which the trainer
    saves a checkpoint; the second signal ends it at once. Raises TuningFailed."""
    with _started([str(work.path)], work.log) as child, _handling(_Stop(child, say)) as stop:
        last = _last(child, report)
    again = "Repeat the command with --resume to go on from the last checkpoint."
    if last is None or last["event"] not in (messages.DONE, messages.STOPPED):
        if stop.is_asked:
            raise TuningFailed(f"Stopped without a new checkpoint. {again}")
        if last is not None and last["event"] == messages.DISK_FULL:
            raise TuningFailed(f"The disk of {work.path} is full. Free some space. {again}")
        reason = last["reason"] if last is not None and "reason" in last else _exit(child)
        advice = " Use a smaller --batch-size or --max-length." if "out of memory" in reason.lower() else ""
        raise TuningFailed(f"The training failed: {reason}.{advice} {again}{_quoted(work.log)}")
    return last


@contextlib.contextmanager
def _started(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """A child, killed at the end if it still runs. Ctrl-C of a terminal does not reach it."""
    argv = [sys.executable, "-P", "-m", "rerankd.tuning.trainer", *arguments]
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {
        **machine.CUDA_ORDER,
        "CUDA_VISIBLE_DEVICES": "0",  # more than one card would divide each batch
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        **dict.fromkeys(_OFFLINE, "1"),
    }
    with log.open("ab") as output:
        child = subprocess.Popen(
            die_with_parent(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            encoding="utf-8",
            env=environment,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def _last(child: subprocess.Popen[str], report: Callable[[Message], None]) -> Message | None:
    """Report all messages until the child ends; returns the last one."""
    assert child.stdout is not None
    last = None
    for line in child.stdout:
        if (message := messages.parse(line)) is not None:
            last = message
            report(message)
    child.wait()
    return last


class _Stop:
    """Handles signals: the first asks the trainer to stop, the second ends it."""

    def __init__(self, child: subprocess.Popen[str], say: Callable[[str], None]) -> None:
        self._child = child
        self._say = say
        self.is_asked = False

    def __call__(self, *_: object) -> None:
        if self.is_asked:
            self._child.kill()
        else:
            self._child.terminate()
            self._say("Saving a checkpoint. Press Ctrl-C again to stop without it.")
        self.is_asked = True


@contextlib.contextmanager
def _handling(handler: _Stop) -> Iterator[_Stop]:
    before = {one: signal.signal(one, handler) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield handler
    finally:
        for number, former in before.items():
            signal.signal(number, former)


def _exit(child: subprocess.Popen[str]) -> str:
    code = child.returncode
    if code == -signal.SIGKILL:
        return "the trainer was killed (SIGKILL), perhaps by the system because it was out of memory"
    return f"the trainer ended with exit code {code}"


def _quoted(log: Path) -> str:
    """The last lines of the log, indented."""
    with contextlib.suppress(OSError):
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][
            -_QUOTED_LINES:
        ]
        return f"\nThe last lines of {log}:\n" + "\n".join(f"  {line:.300}" for line in last)
    return ""
