"""`rerankd key`: create, list and remove API keys in `api_keys_file`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rerankd import config, keys
from rerankd.cli.help import App
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.tables import print_rows
from rerankd.domain import Priority
from rerankd.errors import ConfigError
from rerankd.files import write_whole

app = App(help="Create, list and remove API keys in a file.", no_args_is_help=True)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Name of the key's user; it appears in logs and metrics.")
]
File = Annotated[
    Path | None,
    typer.Option("--file", help="API key file.", show_default="the setting api_keys_file"),
]


@app.command()
def new(
    name: Name,
    priority: Annotated[
        Priority, typer.Option(help="Weight of this client's requests against those of other clients.")
    ] = "normal",
    file: File = None,
    config_file: Config = None,
) -> None:
    """Create a key, print it once, and add its hash to the API key file.

    A running server accepts the key after rerankd reload.
    """
    key, kept = keys.new(name, priority)
    path = _path(file, config_file)
    known = keys.read_file(path) if path.exists() else {}
    if name in known:
        raise ConfigError(
            f"{path} already has a key named {name}. Remove it first (rerankd key remove {name}), or choose "
            "another name."
        )
    _write(path, (path.read_text(encoding="utf-8") if path.exists() else "") + kept.line)
    typer.echo(key)
    say(
        f"The key is not shown again: {path} stores only its hash. To make a running server accept it: "
        "rerankd reload"
    )
    if file is not None:
        say(f'Add the file to the settings: api_keys_file = "{path.absolute()}"')


@app.command("list")
def list_keys(file: File = None, as_json: Json = False, config_file: Config = None) -> None:
    """List the names and priorities of the keys."""
    known = keys.read_file(_path(file, config_file)).values()
    if as_json:
        print_json([{"name": key.name, "sha256": key.digest, "priority": key.priority} for key in known])
        return
    rows = ((key.name, key.digest[:12], key.priority) for key in known)
    print_rows([("name", "SHA-256", "priority"), *rows])


@app.command()
def remove(name: Name, file: File = None, config_file: Config = None) -> None:
    """Remove a key. A running server rejects it after rerankd reload."""
    path = _path(file, config_file)
    if name not in keys.read_file(path):
        raise ConfigError(f"{path} has no key named {name}. To list the keys: rerankd key list")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    _write(path, "".join(line for line in lines if line.partition(":")[0].strip() != name))
    say(f"{name} was removed from {path}. To make a running server reject it: rerankd reload")


def _path(file: Path | None, config_file: Path | None) -> Path:
    path = file or config.from_machine({}, config_file).api_keys_file
    if path is None:
        raise ConfigError("No API key file is set. Name one with --file, or set api_keys_file.")
    return Path(os.path.expanduser(path))


def _write(path: Path, text: str) -> None:
    """Replace a file atomically. A new file is readable by its owner only; an old one keeps its mode."""
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.resolve(), text.encode(), mode)
    except OSError as error:
        raise ConfigError(f"The API key file {path} can't be written: {error}.") from error
