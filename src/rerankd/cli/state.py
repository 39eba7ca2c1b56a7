"""`rerankd state`: show and clear measurements and test results stored about this machine and its models."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from rerankd import config
from rerankd.cli.help import App
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.tables import print_rows
from rerankd.errors import ConfigError

app = App(
    help="Show or clear stored measurements and self-test results.",
    invoke_without_command=True,
)


@app.callback()
def state(context: typer.Context, as_json: Json = False, config_file: Config = None) -> None:
    """Show or clear the results that rerankd stores about this machine and its models.

    rerankd measures missing results again when it needs them.
    """
    if context.invoked_subcommand is not None:
        return
    from rerankd.state import StateStore

    store = StateStore(config.from_machine({}, config_file).home)
    sections = {name: store.entries(name) for name in store.sections()}
    if as_json:
        value = {
            "folder": str(store.folder),
            "sections": {
                name: {key: asdict(entry) for key, entry in entries.items()}
                for name, entries in sections.items()
            },
        }
        print_json(value)
        return
    rows = [
        (name, key, json.dumps(entry.value, ensure_ascii=False), _day(entry.at), _day(entry.until))
        for name, entries in sections.items()
        for key, entry in entries.items()
    ]
    if rows:
        print_rows([("section", "key", "value", "stored", "until"), *rows])
    say(f"entries in {store.folder}: {len(rows)}. To clear them: rerankd state clear [SECTION]")


@app.command()
def clear(
    section: Annotated[
        str | None, typer.Argument(help="A section from `rerankd state`.", show_default="all sections")
    ] = None,
    config_file: Config = None,
) -> None:
    """Delete stored results. rerankd measures them again when it needs them."""
    from rerankd.state import StateStore

    store = StateStore(config.from_machine({}, config_file).home)
    if section is not None and section not in (known := store.sections()):
        raise ConfigError(f"The section {section!r} does not exist. Sections: {', '.join(known) or 'none'}.")
    say(f"entries deleted: {store.clear(section)}")


def _day(seconds: float | None) -> str:
    """Return a local time to the minute; "" for None."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M") if seconds else ""
