"""What all commands share: how they print, show progress, and name their common options."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rerankd import logs
from rerankd.progress import Progress

Config = Annotated[
    Path | None, typer.Option("--config", help="Settings file (TOML) instead of ./rerankd.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]


def print_json(value: Any) -> None:
    """A value for programs."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """A table, its head first; on a terminal aligned, elsewhere with tabs and without the head."""
    if not sys.stdout.isatty():
        for row in rows[1:]:
            typer.echo("\t".join(row))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*rows[0], box=None, pad_edge=False)
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    Console().print(table)


class progress:
    """Shows progress on a terminal as a bar, elsewhere as a line for each step, and one more every ten
    seconds of a long one. A context manager of a callable.

    What still reports after its end was not waited for, and is ended by the KeyboardInterrupt it gets.
    """

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
        if not sys.stderr.isatty():
            if what not in self._tasks:
                self._tasks[what] = None
                say(f"{what} …")
                self._said_at = time.monotonic()
            elif time.monotonic() - self._said_at > 10 and done < total:
                say(f"{what}: {done / total:.0%}")
                self._said_at = time.monotonic()
            return
        from rich.console import Console
        from rich.progress import Progress as Bar

        if self._bar is None:
            self._bar = Bar(console=Console(stderr=True))
            self._bar.start()
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total or None)
        self._bar.update(self._tasks[what], completed=done, total=total or None)


def say(text: str) -> None:
    if logs.is_json():
        logs.tell(text)
    else:
        typer.echo(text, err=True)
