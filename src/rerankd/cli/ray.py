"""`rerankd ray`: serve models on a Ray cluster."""

from __future__ import annotations

import os
import signal
import threading
from typing import Annotated, Any

import typer

from rerankd import __version__, config, logs, propagators
from rerankd.cli import completion
from rerankd.cli.help import App
from rerankd.cli.output import Config, say
from rerankd.cli.setting_options import takes

_POLL_S = 0.2

app = App(help="Serve models on a Ray cluster.", no_args_is_help=True)

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
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL",
            help="Names from `rerankd list`, GGUF files, builtin:e5, or names of [models.NAME] sections.",
            show_default="the configured models, else the model pulled last, else builtin:e5",
            autocompletion=completion.models_here,
        ),
    ] = None,
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
    from rerankd.ray import running

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with running.connected(address), running.served(settings):
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
