"""`rerankd doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from rerankd import config
from rerankd.backends.base import Check, Checkup
from rerankd.cli.output import Config, Json, print_json, progress, say


def doctor(
    online: Annotated[
        bool, typer.Option("--online", help="Ask the package index and the hubs whether they can be reached.")
    ] = False,
    cuda_mirror: Annotated[
        str | None,
        typer.Option(help="A copy of NVIDIA's package repositories, for the commands that install CUDA."),
    ] = None,
    remeasure: Annotated[
        bool,
        typer.Option(
            "--remeasure", help="Choose again how the models to be served are computed: in which precision."
        ),
    ] = False,
    as_json: Json = False,
    config_file: Config = None,
) -> None:
    """Check this machine: CPU, memory, GPUs, CUDA, build tools, disk, port, engines, models.

    Each line has a verdict, and a next step where there is one. Exit code 0 when a model can be served.
    """
    from rerankd.doctor import checks, survey

    settings = config.from_machine({}, config_file)
    with progress() as report:
        seen = survey.look(settings, Checkup(report, online, remeasure, cuda_mirror))
    rows = checks.diagnose(seen)
    able = checks.can_run(rows)
    if as_json:
        print_json({"ok": able, "checks": [asdict(row) for row in rows]})
    else:
        _print(rows)
        say(
            "rerankd can serve a model here." if able else "rerankd can't serve a model here: see fail above."
        )
    if not able:
        raise typer.Exit(1)


def _print(rows: list[Check]) -> None:
    """Each check on a line, its next step below it, so that commands can be copied."""
    width = max(len(row.check) for row in rows)
    colours = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}
    for row in rows:
        mark = typer.style(f"{row.verdict:4}", fg=colours[row.verdict])
        typer.echo(f"{mark}  {row.check:{width}}  {row.says}")
        for line in row.step.splitlines():
            typer.echo(f"      {'':{width}}    {line}")
