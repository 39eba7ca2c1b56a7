"""Help texts of all commands: in the terminal's width, and never cut.

click wraps to 50 columns at least, and ends long descriptions of commands with "...". typer shows types as
Python writes them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

# Lines longer than this are hard to read; below the second width a description begins on a line of its own.
_WIDEST = 100
_NARROW = 60
_TYPE = re.compile(r" <(?:list\[)?(str|int|float|path|file|dir)(?: range)?\]?>$", re.IGNORECASE)


class App(typer.Typer):
    """A family of commands, with the options and the help that all have in common."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            cls=_Group, rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, **options
        )

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=_Command, **options)


class _Help:
    """Mixed into commands and groups of typer."""

    params: list[Any]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for one in self.params:
            if one.param_type_name == "argument":
                one.metavar = one.metavar or one.name.upper()

    def get_help(self, ctx: Any) -> str:
        ctx.terminal_width = max(10, min(shutil.get_terminal_size().columns, _WIDEST) - 1)
        formatter = ctx.make_formatter()
        formatter.write_dl = partial(_write_list, formatter.write_dl, ctx.terminal_width)
        self.format_help(ctx, formatter)  # type: ignore[attr-defined]
        return str(formatter.getvalue().rstrip("\n"))


class _Command(_Help, TyperCommand):
    pass


class _Group(_Help, TyperGroup):
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with the first sentence or paragraph of its help."""
        shown = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        rows = [
            (name, " ".join((one.help or "").partition("\n\n")[0].split()))
            for name, one in shown
            if one is not None and not one.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


def _write_list(write: Callable[..., None], width: int, rows: Sequence[tuple[str, str]]) -> None:
    """Write names with their descriptions by `write`, which is the formatter's `write_dl`."""
    named = [(_TYPE.sub(_placeholder, name), text) for name, text in rows]
    write(named, col_max=30 if width >= _NARROW else 2)


def _placeholder(found: re.Match[str]) -> str:
    """What stands for an option's value. An argument's name says it already."""
    if not found.string.startswith("-"):
        return ""
    kind = found[1].lower()
    return " " + {"str": "TEXT", "int": "N", "float": "N"}.get(kind, kind.upper())
