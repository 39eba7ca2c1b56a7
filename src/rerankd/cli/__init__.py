"""The command line interface of rerankd: one module per command or family of commands.

Results go to standard output, messages and progress to standard error. Exit codes: 0 success, 1 failure,
2 invalid usage or settings, 3 model error, 4 engine error, 5 download error, 6 address in use or invalid,
7 data folder error.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from rerankd import __version__
from rerankd.cli import (
    bench,
    completion,
    doctor,
    engine,
    eval,
    key,
    mcp,
    models,
    ray,
    recipe,
    rerank,
    score,
    serve,
    servers,
    show_logs,
    state,
    status,
    tune,
)
from rerankd.cli.help import App
from rerankd.errors import RerankdError

app = App(
    name="rerankd",
    help="Serve reranker models on your own machine.",
    epilog=(
        "To start: run rerankd serve and open the address that it prints in a browser. For a better model "
        "than the built-in one: rerankd list --recommend, then rerankd pull NAME. If something does not "
        "work, run rerankd doctor and rerankd status."
    ),
    no_args_is_help=True,
)
# In the order of the help.
app.command()(serve.serve)
app.command()(status.status)
app.command()(servers.ps)
app.command()(show_logs.logs)
app.command()(servers.reload)
app.command()(servers.restart)
app.command()(servers.stop)
app.command()(rerank.rerank)
app.command()(score.score)
app.command()(mcp.mcp)
app.command()(models.inspect)
app.command()(models.pull)
app.command("list")(models.list_models)
app.command()(models.show)
app.command()(models.remove)
app.command("eval")(eval.evaluate)
app.command()(tune.tune)
app.command()(bench.bench)
app.command()(doctor.doctor)
app.command()(completion.completion)
app.add_typer(ray.app, name="ray")
app.add_typer(recipe.app, name="recipe")
app.add_typer(engine.app, name="engine")
app.add_typer(key.app, name="key")
app.add_typer(state.app, name="state")


def main() -> None:
    """The `rerankd` program."""
    completion.prepare()
    try:
        app(prog_name="rerankd")
    except RerankdError as error:
        typer.echo(f"rerankd: {error.message}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.filename is None:
            raise
        # Paths are checked where they are used; this is for the rest, such as a name that is too long.
        typer.echo(f"rerankd: {error.filename} can't be used: {error.strerror}.", err=True)
        sys.exit(1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "start new thread" not in str(error):
            raise
        typer.echo(
            "rerankd: the system is out of memory (see ulimit -v), or the limit of processes and threads is "
            "reached (see ulimit -u, and TasksMax of a systemd unit). Raise the limit and start again.",
            err=True,
        )
        sys.exit(1)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rerankd {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
