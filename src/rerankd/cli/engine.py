"""`rerankd engine`: build, list, select and remove llama.cpp engines on this machine."""

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
from rerankd.cli import completion
from rerankd.cli.help import App
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.tables import print_rows

app = App(
    help="Build llama.cpp for this machine, and select the engine to use.",
    no_args_is_help=True,
)


_built = completion.names(lambda settings: ((one.name, "") for one in installed.Engines(settings.home).all()))


@app.command()
def build(
    source: Annotated[
        str | None,
        typer.Option(
            help="Source code to build: a folder, an archive, or a git URL (optionally with #TAG).",
            show_default="a pinned release from the package index",
        ),
    ] = None,
    backend: Annotated[Literal["auto", Backend], typer.Option(help="Compute backend of llama.cpp.")] = "auto",
    cuda_arch: Annotated[
        str | None,
        typer.Option(
            help="Compute capability to build for; 89 means 8.9.", show_default="that of this machine's GPU"
        ),
    ] = None,
    cuda_home: Annotated[
        Path | None, typer.Option(help="Folder of the CUDA toolkit.", show_default="detected")
    ] = None,
    cuda_toolkit: Annotated[
        Literal["system", "wheels"],
        typer.Option(
            help="Source of the CUDA toolkit; wheels: download missing parts from the package index."
        ),
    ] = "system",
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", help="Number of parallel compilers.", show_default="all cores", min=1),
    ] = None,
    portable: Annotated[
        bool,
        typer.Option(
            "--portable",
            help="Build for any x86-64 CPU with AVX2, or any arm64 CPU, instead of for this machine's.",
        ),
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="Rebuild an engine that exists already.")] = False,
    config_file: Config = None,
) -> None:
    """Build llama.cpp from source for this machine, and test the result.

    An interrupted build resumes. If the build or its test fails, the current engine stays in use.
    """
    from rerankd.backends.llama.build.builder import Builder, Request

    # Like Ctrl-C, these signals must also stop the compilers.
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
    say(f"Program: {made.program}")
    _say_choice(settings)


@app.command("list")
def list_engines(as_json: Json = False, config_file: Config = None) -> None:
    """List the engines on this machine; * marks those in use."""
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
    say(f"rerankd uses this llama.cpp: {choice.name} ({choice.reason}).")


@app.command()
def use(
    name: Annotated[
        str,
        typer.Argument(help="A name from `rerankd engine list`, bundled, or auto.", autocompletion=_built),
    ],
    config_file: Config = None,
) -> None:
    """Use this engine from the next start on; auto lets rerankd choose."""
    settings = config.from_machine({}, config_file)
    installed.Engines(settings.home).use(name)
    _say_choice(settings)


@app.command()
def remove(
    name: Annotated[str, typer.Argument(help="A name from `rerankd engine list`.", autocompletion=_built)],
    config_file: Config = None,
) -> None:
    """Delete an engine that was built on this machine."""
    settings = config.from_machine({}, config_file)
    one = installed.Engines(settings.home).remove(name)
    say(f"{one.name} was deleted.")
    _say_choice(settings)


@app.command()
def path(config_file: Config = None) -> None:
    """Print the command of the llama.cpp in use."""
    typer.echo(" ".join(_chosen(config.from_machine({}, config_file)).program))


def _chosen(settings: config.Settings) -> Binary:
    return installed.chosen(settings.options(LlamaOptions), settings.home)


def _say_choice(settings: config.Settings) -> None:
    choice = _chosen(settings)
    say(f"rerankd serve uses this llama.cpp: {choice.name} ({choice.reason}).")


def _columns(row: dict[str, Any]) -> tuple[str, ...]:
    size = f"{row['size_bytes'] / 2**20:.0f} MB" if "size_bytes" in row else ""
    made = str(row.get("made_at", "")).partition("T")[0]
    foreign = "" if row["runs_here"] else "built for another CPU"
    build = f"b{row['build']}" if row.get("build") else row.get("version", "")
    number = f" ({build})" if build and build not in row["name"] else ""
    return ("*" if row["used"] else "", row["name"] + number, row.get("backend", ""), made, size, foreign)
