"""The commands about llama.cpp itself: engine build, list, use, remove, path."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from rerankd import config
from rerankd.backends.llama import installed
from rerankd.backends.llama.binaries import Binary
from rerankd.backends.llama.manifest import Backend
from rerankd.backends.llama.options import LlamaOptions
from rerankd.backends.table import BACKENDS
from rerankd.cli.output import Config, Json, print_json, print_rows, progress, say

app = typer.Typer(
    help="Build llama.cpp for this machine, and choose which one runs the models.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def build(
    source: Annotated[
        str | None,
        typer.Option(
            help="A folder, an archive, or a git URL (#TAG after it if you like).",
            show_default="a pinned build from the package index",
        ),
    ] = None,
    backend: Annotated[Literal["auto", Backend], typer.Option(help="What computes.")] = "auto",
    cuda_arch: Annotated[
        str | None,
        typer.Option(help="The card's compute capability, 89 for 8.9.", show_default="of the card here"),
    ] = None,
    cuda_home: Annotated[
        Path | None, typer.Option(help="The CUDA toolkit's folder.", show_default="looked for")
    ] = None,
    cuda_toolkit: Annotated[
        Literal["system", "wheels"],
        typer.Option(help="wheels: take what is missing from the package index."),
    ] = "system",
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", help="Compilers at a time.", show_default="all cores", min=1)
    ] = None,
    portable: Annotated[
        bool,
        typer.Option("--portable", help="For any CPU with AVX2 (x86-64) or any arm64, not for this one."),
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Build it even if it is there already.")] = False,
    config_file: Config = None,
) -> None:
    """Build llama.cpp from source for this machine, and test it before it is used.

    A build that was cut goes on where it stopped. When it fails, the engine in use stays.
    """
    from rerankd.backends.llama.build.builder import Builder, Request

    # As Ctrl-C does, they end the compilers with it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    settings = config.from_machine({}, config_file)
    request = Request(
        source=source,
        backend=backend,
        cuda_arch=cuda_arch,
        cuda_home=cuda_home,
        cuda_wheels=cuda_toolkit == "wheels",
        jobs=jobs,
        portable=portable,
        again=again,
    )
    with progress() as report:
        builder = Builder(settings.home, report=report, say=say, environ=os.environ)
        made = builder.build(request)
    say(f"{made.name} is ready. Smoke test: {made.manifest.smoke}")
    for note in made.manifest.notes:
        say(f"note: {note}")
    say(f"It is at {made.program}")
    _say_choice(settings)


@app.command("list")
def list_engines(as_json: Json = False, config_file: Config = None) -> None:
    """List the engines on this machine, and which one is used."""
    settings = config.from_machine({}, config_file)
    found = [
        one
        for backend in BACKENDS
        for one in backend.installations(settings.options(backend.Options), settings.home)
    ]
    rows = [{"name": one.name, **one.details, "runs_here": one.runs_here, "used": one.used} for one in found]
    if as_json:
        print_json(rows)
        return
    head = ("", "name", "backend", "made", "size", "")
    print_rows([head, *(_columns(row) for row in rows)])
    choice = _chosen(settings)
    say(f"Used: {choice.name}, because {choice.reason}.")


@app.command()
def use(
    name: Annotated[str, typer.Argument(help="A name of `rerankd engine list`, bundled, or auto.")],
    config_file: Config = None,
) -> None:
    """Use this engine from the next start on; auto has rerankd choose."""
    settings = config.from_machine({}, config_file)
    installed.Engines(settings.home).use(name)
    _say_choice(settings)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A name of `rerankd engine list`.")], config_file: Config = None
) -> None:
    """Delete an engine that was built here."""
    settings = config.from_machine({}, config_file)
    one = installed.Engines(settings.home).remove(name)
    say(f"{one.name} is gone.")
    _say_choice(settings)


@app.command()
def path(config_file: Config = None) -> None:
    """Print the path of the program that is used."""
    typer.echo(" ".join(_chosen(config.from_machine({}, config_file)).program))


def _chosen(settings: config.Settings) -> Binary:
    return installed.chosen(settings.options(LlamaOptions), settings.home)


def _say_choice(settings: config.Settings) -> None:
    choice = _chosen(settings)
    say(f"rerankd serve uses {choice.name}: {choice.reason}.")


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    size = f"{row['size_bytes'] / 2**20:.0f} MB" if "size_bytes" in row else ""
    made = str(row.get("made_at", "")).partition("T")[0]
    foreign = "" if row["runs_here"] else "built for another CPU"
    build = f"b{row['build']}" if row.get("build") else row.get("version", "")
    number = f" ({build})" if build and build not in row["name"] else ""
    return ("*" if row["used"] else "", row["name"] + number, row.get("backend", ""), made, size, foreign)
