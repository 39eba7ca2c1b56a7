"""`rerankd ps`, `stop`, `restart` and `reload`: find the running server, and signal it.

The servers record themselves in the data folder (server_records.py), so these commands need no HTTP and no
API key; they work on a server that no longer answers.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

import typer

from rerankd import config, processes, server_records
from rerankd.cli import running_server
from rerankd.cli.output import Config, Json, print_json, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.tables import print_rows
from rerankd.errors import ConfigError, RerankdError
from rerankd.progress import size_words
from rerankd.server_records import Server

_RELOAD_TIMEOUT_S = 60
_LOOK_EVERY_S = 0.1
# Beyond drain_timeout_s and stop_timeout_s: the event loop may be busy.
_MARGIN_S = 20


def ps(as_json: Json = False, config_file: Config = None) -> None:
    """List the servers that run with this data folder. For their models: rerankd status."""
    settings = config.from_machine({}, config_file)
    found = server_records.running(settings.home)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    if not found:
        say(f"No server runs with the data folder {settings.home}. To start one: rerankd serve")
        return
    rows = [
        (
            one.url,
            str(one.pid),
            datetime.fromtimestamp(one.since).strftime("%Y-%m-%d %H:%M"),
            size_words(processes.memory_bytes(one.pid) or 0),
            one.unit or "-",
            one.log,
        )
        for one in found
    ]
    print_rows([("address", "pid", "since", "memory", "systemd unit", "log"), *rows])


def stop(config_file: Config = None) -> None:
    """Stop the running server. It finishes the requests in progress, for at most drain_timeout_s.

    Of several servers, it stops the one at the configured port (RERANKD_PORT=PORT rerankd stop).
    """
    settings = config.from_machine({}, config_file)
    server = the_server(settings)
    _refuse_unit(server, "stop")
    _send(server, signal.SIGTERM)
    _wait(server, settings, "waiting for the requests in progress", lambda: not server.runs)
    say(f"The server at {server.url} has stopped.")


def restart(config_file: Config = None) -> None:
    """Restart the running server: it finishes its requests, then starts again with the same arguments.

    It keeps its terminal and its environment, and loads the models again. Connections are refused for a
    moment. For other settings, rerankd reload is often enough.
    """
    settings = config.from_machine({}, config_file)
    server = the_server(settings)
    _refuse_unit(server, "restart")
    _send(server, signal.SIGUSR2)

    def is_new() -> bool:
        again = (one for one in server_records.running(settings.home) if one.pid == server.pid)
        return not server.runs or any(one.since > server.since for one in again)

    _wait(server, settings, "waiting for the requests in progress", is_new)
    if not server.runs:
        raise RerankdError(
            f"The server at {server.url} has stopped, but not started again. See {server.log}."
        )
    say(f"The server at {server.url} has started again and loads its models. To see them: rerankd status")


def reload(
    model: Annotated[
        str | None,
        typer.Argument(help="A name from `rerankd status`.", show_default="read the settings again"),
    ] = None,
    config_file: Config = None,
) -> None:
    """Read the settings again in the running server; with MODEL, restart that model's engine.

    A failed engine is restarted immediately. A running engine is replaced without failing a request. A
    model file that has changed is read again. The setting admin_api is not required.
    """
    settings = config.from_machine({}, config_file)
    if model is None:
        server = the_server(settings)
        _send(server, signal.SIGHUP)
        say(f"The server at {server.url} reads its settings again. To see errors: rerankd logs")
        return
    path = f"/v1/models/{quote(model, safe='', errors='replace')}/reload"
    answer = running_server.request(
        settings, "POST", path, status=202, has="model", timeout_s=_RELOAD_TIMEOUT_S, json={}
    )
    say(f"{answer['model']} is being reloaded. To see when it is ready: rerankd status")


def the_server(settings: config.Settings) -> Server:
    """Return the running server: that at the configured port, or the only one where no port is configured.
    Raises RerankdError, and ConfigError if another one was meant or several run."""
    found = server_records.running(settings.home)
    here = [one for one in found if one.url.rpartition(":")[2] == str(settings.port)]
    if here:
        return here[0]
    if len(found) == 1 and "port" not in settings.model_fields_set:
        return found[0]
    if len(found) == 1:
        (port,) = (one.url.rpartition(":")[2] for one in found)
        raise ConfigError(
            f"No server runs at the configured port {settings.port}, but one at {found[0].url}. For that "
            f"one: RERANKD_PORT={port} rerankd …"
        )
    if found:
        urls = ", ".join(one.url for one in found)
        raise ConfigError(f"Several servers run: {urls}. Name one by its port: RERANKD_PORT=PORT rerankd …")
    if running_server.answers(settings):
        raise ConfigError(
            f"The server at {settings.local_url} runs with another data folder than {settings.home}, or as "
            "another user. Run this command as that user, with the same RERANKD_HOME; in a container or a "
            "systemd unit, use their commands."
        )
    raise RerankdError(f"No server runs with the data folder {settings.home}. To start one: rerankd serve")


def _refuse_unit(server: Server, verb: str) -> None:
    if server.unit:
        raise ConfigError(
            f"The server at {server.url} is run by systemd. Use: systemctl {verb} {server.unit} (with --user "
            "for a unit of your own)"
        )


def _send(server: Server, number: signal.Signals) -> None:
    try:
        os.kill(server.pid, number)
    except ProcessLookupError:
        raise RerankdError(f"The server at {server.url} has just stopped.") from None
    except PermissionError:
        raise RerankdError(
            f"The server at {server.url} (process {server.pid}) belongs to another user. Run this command as "
            "that user."
        ) from None


def _wait(server: Server, settings: config.Settings, what: str, is_done: Callable[[], bool]) -> None:
    """Wait until `is_done`, and show the seconds. Raises RerankdError after the server's own limits."""
    limit_s = round(settings.drain_timeout_s + settings.stop_timeout_s + _MARGIN_S)
    start = time.monotonic()
    with progress() as report:
        while not is_done():
            waited_s = time.monotonic() - start
            if waited_s > limit_s:
                raise RerankdError(
                    f"The server at {server.url} (process {server.pid}) has not stopped within {limit_s} s. "
                    f"To end it at once: kill -9 {server.pid}"
                )
            report(what, int(waited_s), limit_s)
            time.sleep(_LOOK_EVERY_S)
