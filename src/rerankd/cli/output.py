"""Output of all commands: JSON and messages; and their common options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from rerankd import logs

Config = Annotated[
    Path | None, typer.Option("--config", help="Settings file (TOML) to use instead of ./rerankd.toml.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(value: Any) -> None:
    """Print a value as JSON to standard output."""
    typer.echo(json.dumps(value, ensure_ascii=False, indent=2))


def say(text: str) -> None:
    """Print a message to standard error, or log it if the log format is JSON."""
    if logs.is_json():
        logs.tell(text)
    else:
        typer.echo(text, err=True)
