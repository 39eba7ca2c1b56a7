"""`rerankd ray`: serve models and score files on a Ray cluster."""

from __future__ import annotations

import os
import signal
import threading
from dataclasses import asdict
from typing import Annotated, Any

import typer

from rerankd import __version__, config, logs, propagators
from rerankd.cli import pair_options
from rerankd.cli.help import App
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.setting_options import ServedModels, takes

_POLL_S = 0.2

app = App(help="Serve models and score files on a Ray cluster.", no_args_is_help=True)

Address = Annotated[
    str | None,
    typer.Option(
        help="Address of a Ray cluster, or auto for the one on this machine.",
        show_default="RAY_ADDRESS, else a new cluster on this machine",
    ),
]


@app.command()
@takes("host", "port", "api_key", "ray_min_replicas", "ray_max_replicas", "ray_cpus", "ray_gpus")
def serve(
    models: ServedModels = None,
    address: Address = None,
    config_file: Config = None,
    **flags: Any,
) -> None:
    """Serve models on a Ray cluster until Ctrl-C, each by replicas that Ray starts where it has room.

    Every node needs rerankd with the same version, and the files of the models at the same path or under the
    same name in its data folder. The settings are those of this machine.

    Requests, responses and errors are those of `rerankd serve`. Requests with the same query go to the same
    replica, whose cache knows it, unless it is busy.
    """
    from rerankd import ray as on_ray

    on_ray.check_installed()
    flags["model"] = tuple(models) if models else None
    settings = config.from_machine(flags, config_file)
    logs.configure(settings.log_level, settings.log_format)
    propagators.drop_missing(os.environ)
    from rerankd.ray import connection, running

    stop = threading.Event()
    _set_at_signals(stop)
    with connection.connected(address):
        _set_at_signals(stop)  # Ray has replaced SIGTERM's handler by one that exits with 15
        with running.served(settings):
            while not stop.wait(_POLL_S) and not running.is_listening():
                pass
            if not stop.is_set():
                say(
                    f"rerankd {__version__} serves through Ray at {settings.local_url}\n"
                    f"  Requests wait until a replica is ready. Progress: {settings.local_url}/ready"
                )
            stop.wait()
            say("Finishing the requests in progress.")
    say("rerankd has stopped.")


def _set_at_signals(stop: threading.Event) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())


@app.command()
@takes("threads", "engine")
def score(
    source: Annotated[
        str,
        typer.Argument(
            metavar="IN",
            help="A file, a pattern with *, or a folder, as a path or a URL: .jsonl, .csv, .tsv or .parquet, "
            "or a saved Hugging Face dataset.",
        ),
    ],
    target: Annotated[
        str,
        typer.Argument(metavar="OUT", help="Folder for the parts of the output, as a path or a URL."),
    ],
    model: pair_options.Model = None,
    query_column: pair_options.QueryColumn = "query",
    document_column: pair_options.DocumentColumn = "document",
    instruction_column: pair_options.InstructionColumn = "",
    score_column: pair_options.ScoreColumn = "score",
    error_column: pair_options.ErrorColumn = "error",
    instruction: pair_options.Instruction = None,
    raw_scores: pair_options.RawScores = False,
    delimiter: pair_options.Delimiter = None,
    restart: pair_options.Restart = False,
    part_rows: Annotated[
        int, typer.Option(help="Rows of a part, about. A stop loses the parts in progress.", min=1)
    ] = 2000,
    address: Address = None,
    actors: Annotated[
        int | None,
        typer.Option(
            help="Number of engines on the cluster.",
            show_default="one for each GPU, else one for each node",
            min=1,
        ),
    ] = None,
    cpus: Annotated[
        float | None,
        typer.Option(
            help="CPUs of each engine.",
            show_default="all of the smallest node, 1 with a GPU",
            min=0.01,
        ),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(help="GPUs of each engine.", show_default="1 if the cluster has any, else 0", min=0),
    ] = None,
    as_json: Json = False,
    config_file: Config = None,
    **flags: Any,
) -> None:
    """Score the pairs of query and document in files, with the engines of a Ray cluster.

    OUT gets the rows of IN in their order, in parts, with the score of each; a row that can't be scored gets
    the reason. If the command is stopped, in whatever way, the parts are kept, and the same command goes on
    after them. Exit code 1 if no row has a score.

    Every node needs rerankd with the same version, the model, which it may download, and access to IN and
    OUT. The settings are those of this machine.
    """
    from rerankd import ray as on_ray

    on_ray.check_installed()
    from rerankd.bulk.job import settings_for_pairs
    from rerankd.bulk.row_scorer import Kind
    from rerankd.bulk.rows import Columns
    from rerankd.ray import connection, job, slices, storage
    from rerankd.ray.part_scorer import Work
    from rerankd.ray.pool import Wanted
    from rerankd.ray.serve_plan import carried_values

    given = {**flags, "model": (model,) if model else None}
    settings = settings_for_pairs(config.from_machine(given, config_file))
    columns = Columns(query_column, document_column, instruction_column, score_column, error_column)
    output = job.Output(storage.absolute(target))
    with progress(rows="scoring ") as tell:
        try:
            output.check_new()
            source = storage.absolute(source)
            form, files = slices.source_of(source, delimiter)
            kind = Kind(raw_scores, instruction)
            work = Work(form, columns, kind, output.url, carried_values(settings))
            cut = job.read_input(work, source, files, part_rows, tell)
            with connection.connected(address, is_quiet=True):
                # As Ctrl-C. Ray's own handler exits with 15.
                signal.signal(signal.SIGTERM, signal.default_int_handler)
                report = job.run(work, cut, output, Wanted(actors, cpus, gpus), tell, restart=restart)
        except KeyboardInterrupt:
            say(f"\nThe parts that are written are kept in {target}. Run the same command again to go on.")
            raise
    if as_json:
        print_json({**asdict(report), "output": output.url})
    else:
        typer.echo(pair_options.summary(report, target))
    if report.has_no_score:
        raise typer.Exit(1)
