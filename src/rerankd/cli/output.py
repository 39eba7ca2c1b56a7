"""Output of all commands: JSON, tables, progress bars and messages; and their common options."""

from __future__ import annotations

import itertools
import json
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from rerankd import logs
from rerankd.progress import Progress

Config = Annotated[
    Path | None, typer.Option("--config", help="Settings file (TOML) to use instead of ./rerankd.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """Print a value as JSON to standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def print_rows(rows: Sequence[Sequence[str]], *, as_blocks: bool = False) -> None:
    """Print a table whose first row is the header: aligned on a terminal, else tab-separated without header.

    `as_blocks` prints each row as a few lines of text if the terminal is too narrow for the table.
    """
    if not sys.stdout.isatty():
        for row in rows[1:]:
            typer.echo("\t".join(row))
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    if as_blocks and sum(widths) + 2 * len(widths) > console.width:
        for row in rows[1:]:
            typer.echo("\n".join(block(rows[0], row, console.width)))
        return
    table = Table(box=None, pad_edge=False)
    for title in rows[0]:
        table.add_column(title, overflow="fold")
    for row in rows[1:]:
        table.add_row(*map(escape, row))
    console.print(table)


def block(head: Sequence[str], row: Sequence[str], width: int) -> list[str]:
    """Render a row as its first two values and, indented, "name value" for each other value that is known."""
    lines: list[str] = []
    for name, value in zip(head[2:], row[2:], strict=True):
        part = f"{name} {value}"
        if value in ("-", ""):
            continue
        if lines and len(lines[-1]) + 2 + len(part) <= width - 2:
            lines[-1] += f", {part}"
        else:
            lines.append(part)
    indented = (textwrap.wrap(line, width, initial_indent="  ", subsequent_indent="    ") for line in lines)
    return [f"{row[0]}  {row[1]}", *itertools.chain.from_iterable(indented)]


class progress:
    """Shows progress: on a terminal as a bar, elsewhere as a line at the start of each step and every ten
    seconds. A context manager that yields the function to report progress with.

    After its end that function raises KeyboardInterrupt, which stops work whose result is no longer awaited.
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
    """Print a message to standard error, or log it if the log format is JSON."""
    if logs.is_json():
        logs.tell(text)
    else:
        typer.echo(text, err=True)
