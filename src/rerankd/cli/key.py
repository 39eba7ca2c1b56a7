"""`rerankd key`: the keys in the file that `api_keys_file` names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from rerankd import config, keys
from rerankd.cli.output import Config, print_rows, say
from rerankd.domain import Priority
from rerankd.errors import ConfigError
from rerankd.files import write_whole

app = typer.Typer(
    help="Make, list and remove the API keys of a file.", no_args_is_help=True, rich_markup_mode=None
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="Who uses the key; it is shown in logs and metrics.")
]
File = Annotated[
    Path | None,
    typer.Option("--file", help="The file of keys.", show_default="api_keys_file of the settings"),
]


@app.command()
def new(
    name: Name,
    priority: Annotated[
        Priority, typer.Option(help="How its requests weigh against those of other clients.")
    ] = "normal",
    file: File = None,
    config_file: Config = None,
) -> None:
    """Make a key, print it once, and add its hash to the file.

    A running server takes it over on SIGHUP.
    """
    key, kept = keys.new(name, priority)
    path = _path(file, config_file)
    known = keys.read_file(path) if path.exists() else {}
    if name in known:
        raise ConfigError(f"There is a key named {name} in {path}. Remove it first, or choose another name.")
    _write(path, (path.read_text(encoding="utf-8") if path.exists() else "") + kept.line)
    typer.echo(key)
    say(f"This is the only time the key is shown. Its hash is in {path}; a running server needs a SIGHUP.")
    if file is not None:
        say(f'Name the file in the settings: api_keys_file = "{path.absolute()}"')


@app.command("list")
def list_keys(file: File = None, config_file: Config = None) -> None:
    """List the names of the keys and their priorities."""
    known = keys.read_file(_path(file, config_file)).values()
    rows = ((key.name, key.digest[:12], key.priority) for key in known)
    print_rows([("name", "SHA-256", "priority"), *rows])


@app.command()
def remove(name: Name, file: File = None, config_file: Config = None) -> None:
    """Remove a key. A running server refuses it from the next SIGHUP on."""
    path = _path(file, config_file)
    if name not in keys.read_file(path):
        raise ConfigError(f"There is no key named {name} in {path}. `rerankd key list` lists them.")
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    _write(path, "".join(line for line in lines if line.partition(":")[0].strip() != name))
    say(f"{name} is removed from {path}; a running server needs a SIGHUP.")


def _path(file: Path | None, config_file: Path | None) -> Path:
    path = file or config.from_machine({}, config_file).api_keys_file
    if path is None:
        raise ConfigError("No file of keys is set: name one with --file, or set api_keys_file.")
    return Path(os.path.expanduser(path))


def _write(path: Path, text: str) -> None:
    """Replace a file at once, readable for its owner only unless it had another mode."""
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.resolve(), text.encode(), mode)
    except OSError as error:
        raise ConfigError(f"The file of API keys {path} can't be written: {error}.") from error
