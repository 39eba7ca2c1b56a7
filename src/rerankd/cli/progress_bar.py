"""Progress of long operations on standard error: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from rerankd.cli.output import say
from rerankd.progress import Progress, size_words

# A total from here on is in bytes: no operation has so many steps.
_BYTES_FROM = 100_000
_SAY_EVERY_S = 10
_BAR_CELLS = 24
# A terminal as wide as this has room for a bar beside the numbers.
_BAR_FROM = 90


class progress:
    """Shows progress. A context manager that yields the function to report progress with.

    After its end that function raises KeyboardInterrupt, which stops work whose result is no longer awaited.
    """

    def __init__(self, rows: str = "") -> None:
        """`rows`: the beginning of the description of work whose total is an estimated number of rows."""
        self._rows = rows

    def __enter__(self) -> Progress:
        self._ended = False
        self._bar: Any = None
        self._tasks: dict[str, Any] = {}
        self._said_at = 0.0
        return self._report

    def __exit__(self, *_: object) -> None:
        self._ended = True
        if self._bar is not None:
            self._bar.stop()

    def _report(self, what: str, done: int, total: int) -> None:
        if self._ended:
            raise KeyboardInterrupt
        if sys.stderr.isatty():
            self._draw(what, done, total)
            return
        now = time.monotonic()
        if what not in self._tasks:
            self._tasks[what] = (now, done)
            say(f"{what} …")
            self._said_at = now
        elif now - self._said_at > _SAY_EVERY_S and done < total:
            since, first = self._tasks[what]
            speed = (done - first) / (now - since)
            left_s = (total - done) / speed if speed else None
            say(f"{what}: {self._numbers(what, done, total, speed, left_s)}")
            self._said_at = now

    def _numbers(self, what: str, done: int, total: int, speed: float | None, left_s: float | None) -> str:
        of_rows = self._rows and what.startswith(self._rows)
        return (row_numbers if of_rows else numbers)(done, total, speed, left_s)

    def _draw(self, what: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _bar(self._numbers)
            self._bar.start()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total or None)
        self._bar.update(self._tasks[what], completed=done, total=total or None)


def numbers(done: int, total: int, speed: float | None, left_s: float | None) -> str:
    """Render how far an operation is: `1.2 GiB of 4.3 GiB, 38.1 MiB/s, 1:23 left`, or `45%` of its steps."""
    if total < _BYTES_FROM:
        # One step has nothing between its start and its end.
        return f"{done / total:.0%}" if total > 1 else "done" if total and done >= total else "…"
    parts = [f"{size_words(done)} of {size_words(total)}" if done < total else size_words(total)]
    if done < total and speed:
        parts.append(f"{size_words(int(speed))}/s")
    return ", ".join(parts + _left(left_s if done < total else None))


def row_numbers(done: int, total: int, speed: float | None, left_s: float | None) -> str:
    """Render how far a job is: `12,000 of about 40,000 rows, 310/s, 1:23 left`."""
    parts = [f"{done:,} of about {total:,} rows" if done < total else f"{done:,} rows"]
    if done < total and speed:
        parts.append(f"{speed:,.3g}/s" if speed < 1000 else f"{speed:,.0f}/s")
    return ", ".join(parts + _left(left_s if done < total else None))


def _left(left_s: float | None) -> list[str]:
    if left_s is None:
        return []
    hours, seconds = divmod(round(left_s), 3600)
    minutes = f"{seconds // 60:02}" if hours else f"{seconds // 60}"
    return [f"{f'{hours}:' if hours else ''}{minutes}:{seconds % 60:02} left"]


def _bar(numbers: Callable[[str, int, int, float | None, float | None], str]) -> Any:
    """Create the bar. Importing it takes 0.1 s, which commands without progress save."""
    from rich.console import Console
    from rich.progress import BarColumn, ProgressColumn, Task
    from rich.progress import Progress as Bar
    from rich.table import Column
    from rich.text import Text

    class Words(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.description)

    class Numbers(ProgressColumn):
        def render(self, task: Task) -> Text:
            done, total = int(task.completed), int(task.total or 0)
            text = numbers(task.description, done, total, task.speed, task.time_remaining)
            return Text(text, style="cyan")

    console = Console(stderr=True)
    bar = [BarColumn(bar_width=_BAR_CELLS)] if console.width >= _BAR_FROM else []
    folding = (Column(overflow="fold"), Column(overflow="fold"))
    return Bar(Words(folding[0]), *bar, Numbers(folding[1]), console=console)
