"""Tables on standard output: aligned and never cut on a terminal, tab-separated elsewhere; and colours."""

from __future__ import annotations

import itertools
import os
import sys
import textwrap
import unicodedata
from collections.abc import Mapping, Sequence

import typer

# The last column of a table, often a text, wraps if it has this many cells left; else rows become blocks.
_LEAST_CELLS = 24
STATES = {
    "ok": "green",
    "ready": "green",
    "warn": "yellow",
    "loading": "yellow",
    "fail": "red",
    "failed": "red",
    "outside": "red",
}
"""The colour of a cell that holds one of these words."""


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first row is the header. On a terminal it is aligned, or, if the terminal is too
    narrow, each row is a few lines; elsewhere it is tab-separated, without header."""
    if not sys.stdout.isatty():
        for row in rows[1:]:
            # A tab in another column than the last would shift the columns.
            typer.echo("\t".join([*(" ".join(cell.split()) for cell in row[:-1]), row[-1]]))
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, no_color=not has_colour())
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(*shown, strict=True)]
    last = console.width - sum(widths[:-1]) - 2 * (len(widths) - 1)
    if last < min(widths[-1], _LEAST_CELLS):
        for row in shown[1:]:
            typer.echo("\n".join(block(shown[0], row, console.width)))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in shown[0][:-1]:
        table.add_column(title, no_wrap=True)
    table.add_column(shown[0][-1], overflow="fold")
    for row in shown[1:]:
        table.add_row(*(Text(cell, style=STATES.get(cell, "")) for cell in row))
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
    # Names and paths stay whole, for copying: the terminal wraps those that are too long.
    wrapper = textwrap.TextWrapper(
        width, initial_indent="  ", subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return [f"{row[0]}  {row[1]}".strip(), *itertools.chain.from_iterable(map(wrapper.wrap, lines))]


def printable(text: str) -> str:
    """Escape the characters that would move the cursor or change the terminal."""
    return "".join(
        letter if unicodedata.category(letter) not in ("Cc", "Cs", "Zl", "Zp") else _escaped(letter)
        for letter in text
    )


def _escaped(letter: str) -> str:
    return " " if letter in "\t\n" else letter.encode("unicode_escape").decode()


def has_colour(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether standard output is a terminal that shows colours, and the user has not set NO_COLOR
    (https://no-color.org)."""
    return sys.stdout.isatty() and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb"


def coloured(text: str, state: str) -> str:
    """Return a text in the colour of `state`, where colours are shown."""
    return typer.style(text, fg=STATES[state]) if has_colour() else text
