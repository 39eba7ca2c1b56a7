"""The progress of a training on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rerankd.cli.output import say
from rerankd.tuning import messages

_SAY_EVERY_S = 30


class TrainingBar:
    """Shows the trainer's messages (see tuning/messages.py). A context manager; call it with each message."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._said_at = 0.0
        self._best = -1.0
        self._validated = ""

    def __enter__(self) -> TrainingBar:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            console = Console(stderr=True)
            self._bar = Progress(
                TextColumn("training"),
                BarColumn(bar_width=24),
                TextColumn("{task.description}"),
                console=console,
            )
            self._task = self._bar.add_task("…", total=None)
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, message: Mapping[str, Any]) -> None:
        if message["event"] == messages.VALIDATED:
            self._validate(message["step"], message["ndcg"])
        elif message["event"] == messages.STEP:
            self._step(message)

    def _validate(self, step: int, ndcg: float) -> None:
        is_best = ndcg > self._best
        self._best = max(self._best, ndcg)
        self._validated = f", nDCG@10 {ndcg:.4f} (best {self._best:.4f})"
        what = "before training" if step == 0 else f"step {step}"
        best = ", the best so far" if is_best and step > 0 else ""
        say(f"{what}: nDCG@10 {ndcg:.4f} on the validation queries{best}")

    def _step(self, message: Mapping[str, Any]) -> None:
        done, total = message["step"], message["steps"]
        text = (
            f"step {done} of {total}, loss {message['loss']:.4f}{self._validated}{_left(message['left_s'])}"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, description=text)
            return
        now = time.monotonic()
        if now - self._said_at > _SAY_EVERY_S:
            say(f"training: {text}")
            self._said_at = now


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f", {hours}:{minutes:02}:{rest:02} left" if hours else f", {minutes}:{rest:02} left"
