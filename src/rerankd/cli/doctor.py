"""`rerankd doctor`: check this machine."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from rerankd import config
from rerankd.backends.base import Check, Checkup
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.tables import coloured


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Also check that the package index and the hubs can be reached.")
    ] = False,
    cuda_mirror: Annotated[
        str | None,
        typer.Option(help="URL of a mirror of NVIDIA's package repositories, for the commands it suggests."),
    ] = None,
    remeasure: Annotated[
        bool,
        typer.Option(
            "--remeasure", help="Measure again which precision is best for the models to be served."
        ),
    ] = False,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Check this machine: hardware, tools, disk, port, engines, models.

    Each line has a status (ok, warn or fail) and, if something is wrong, the next step. Exit code 0 if
    rerankd can serve a model here, else 1.
    """
    from rerankd.doctor import checks, survey

    settings = config.from_machine({}, config_file)
    with progress() as report:
        seen = survey.look(settings, Checkup(report, online, remeasure, cuda_mirror))
    rows = checks.diagnose(seen)
    able = checks.can_run(rows)
    if as_json:
        # 0.1 named the status "verdict".
        print_json({"ok": able, "checks": [{**asdict(row), "verdict": row.status} for row in rows]})
    else:
        _print(rows)
        say(
            "rerankd can serve a model here."
            if able
            else "rerankd can't serve a model here: fix the lines marked fail."
        )
    if not able:
        raise typer.Exit(1)


def _print(rows: list[Check]) -> None:
    """Print each check on a line and its next step below it, so that commands can be copied."""
    width = max(len(row.check) for row in rows)
    for row in rows:
        mark = coloured(f"{row.status:4}", row.status)
        typer.echo(f"{mark}  {row.check:{width}}  {row.says}")
        for line in row.step.splitlines():
            typer.echo(f"      {'':{width}}    {line}")
