"""`rerankd serve`: start the HTTP service, and print the startup messages."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rerankd import __version__, config, logs, propagators, server_records
from rerankd.cli.output import Config, say
from rerankd.cli.progress_bar import progress
from rerankd.cli.setting_options import ServedModels, of_backends, takes

if TYPE_CHECKING:
    from rerankd.api.server import Server
    from rerankd.service import Reranker
    from rerankd.serving.pending_model import PendingModel
    from rerankd.serving.served_model import ServedModel


@takes(
    *("host", "port", "alias", "api_key", "api_prefix", "engine", "force"),
    *("budget_ms", "truncate_query", "truncate_at"),
    *of_backends(),
)
def serve(
    models: ServedModels = None,
    config_file: Config = None,
    **flags: Any,
) -> None:
    """Serve rerankers over HTTP until Ctrl-C.

    Without MODEL and configured models, it serves the model that was pulled last. If none was pulled, it
    serves the small built-in model, which it downloads at the first start. If several models are served, the
    field "model" of a request selects one.
    """
    flags["model"] = models
    # Repeatable options that are not given are empty lists.
    flags = {name: tuple(one) if isinstance(one, list) else one for name, one in flags.items() if one != []}
    early = _handle_early_signals()
    settings = config.from_machine(flags, config_file)
    from rerankd.hub.store import Store

    log = Store(settings.home).server_log(settings.port)
    logs.configure(settings.log_level, settings.log_format, log)
    propagators.drop_missing(os.environ)
    try:
        again = asyncio.run(_serve(settings, log, partial(config.from_machine, flags, config_file), early))
    except asyncio.CancelledError:
        sys.exit(0)
    if again:
        say("rerankd restarts.")
        os.execv(sys.executable, sys.orig_argv)
    say("rerankd has stopped.")


def _handle_early_signals() -> list[int]:
    """Handle signals before the event loop runs: SIGHUP is stored for it; SIGTERM exits, as nothing has been
    started yet."""
    early: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: early.append(number))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    return early


async def _serve(
    settings: config.Settings, log: Path, reread: Callable[[], config.Settings], early: Sequence[int]
) -> bool:
    """Serve until a signal; returns whether it asked for a restart."""
    from rerankd.api import listen_address
    from rerankd.api.systemd import Notifier, passed_sockets
    from rerankd.cli.lifecycle import Lifecycle
    from rerankd.service import Reranker

    notifier, passed = Notifier.of(os.environ), passed_sockets(os.environ)
    sockets = passed or [listen_address.bind(settings.host, settings.port)]
    with contextlib.ExitStack() as stack:
        for sock in sockets:
            stack.enter_context(sock)
        reranker = Reranker(settings)
        life = Lifecycle(reranker, reread, notifier, sockets_outlive=bool(passed))
        life.handle_signals()
        stack.enter_context(server_records.recorded(settings.home, listen_address.url(sockets), log))
        waiting = contextlib.ExitStack()
        shown = waiting.enter_context(progress())

        def report(what: str, done: int, total: int) -> None:
            # After startup progress is not shown, but a download that is retried must continue.
            with contextlib.suppress(KeyboardInterrupt):
                shown(what, done, total)

        def listening() -> None:
            if not reranker.registry.setup.started:
                say(_listening_message(reranker, listen_address.url(sockets), passed=bool(passed)))

        def started() -> None:
            waiting.close()
            say(_startup_message(reranker, sockets))

        if early:
            life.reload()
        with waiting:
            await life.run(sockets, partial(_server, reranker, listening), started, report)
    return life.restarts


async def _server(reranker: Reranker, listening: Callable[[], None]) -> Server:
    """Create the web server. Its import takes about as long as loading a small model, so it runs in a thread
    beside that."""
    loop = asyncio.get_running_loop()
    imported = asyncio.Event()

    def import_web() -> None:
        try:
            import_module("rerankd.api.app")
            import_module("rerankd.api.server")
        finally:  # a package that can't be imported raises below, too
            with contextlib.suppress(RuntimeError):  # the loop has been closed
                loop.call_soon_threadsafe(imported.set)

    # A daemon thread, so that a failed start does not wait for it.
    threading.Thread(target=import_web, daemon=True).start()
    await imported.wait()
    from rerankd.api import app, server

    return server.Server(app.create_app(reranker=reranker), settings=reranker.settings, listening=listening)


def _listening_message(reranker: Reranker, url: str, *, passed: bool) -> str:
    names = ", ".join(entry.name for entry in reranker.registry.all) or "the models of the upstream servers"
    activated = ", on a socket from systemd" if passed else ""
    return (
        f"rerankd {__version__} listens at {url}{activated}\n"
        f"  Loading {names}; requests wait until it is ready. Progress: {url}/ready"
    )


def _startup_message(reranker: Reranker, sockets: Sequence[socket.socket]) -> str:
    """Return the message after startup: address, models, notes, and the settings for Dify."""
    from rerankd.api import listen_address
    from rerankd.hub.store import Store

    registry, url = reranker.registry, listen_address.url(sockets)
    cascades = [one for one in registry.cascades if not registry.why_not(one)]
    remote = registry.remote_models
    models = [one.name for one in registry.models] + [one.name for one in remote]
    names = [one.name for one in cascades] + models
    first = [one.name for one in cascades if one.is_first] + models
    lines = [
        f"rerankd {__version__} serves {', '.join(names) or 'no model yet'} at {url}",
        "  Open this address in a browser to try it, to see its status and to connect clients.",
    ]
    for served in registry.models:
        lines += ["", *_of_model(served)]
    for cascade in cascades:
        lines += ["", f"  cascade  {cascade.name}: {cascade}"]
    if remote:
        lines.append("")
    lines += [f"  remote   {one.name}: served by {one.where}" for one in remote]
    for place in registry.remote.unlisted:
        lines += ["", f"  upstream {place.name} has not listed its models: {place.error or 'it is starting'}"]
    lines.append(f"  logs     {_short(Store(reranker.settings.home).logs)}")
    for pending in registry.pending:
        lines += ["", *_of_pending(pending)]
    notes = _notes(reranker, sockets[0])
    return "\n".join(
        [
            *lines,
            *(("", *notes) if notes else ()),
            "",
            "  In Dify, add a model of the provider OpenAI-API-compatible:",
            "    Model Type        Rerank",
            f"    Model Name        {first[0] if first else 'NAME'}",
            f"    API endpoint URL  {listen_address.url_for_others(sockets)}/v1",
        ]
    )


def _of_pending(pending: PendingModel) -> list[str]:
    reason = pending.error.message.replace("\n", "\n           ") if pending.error is not None else ""
    again = "automatically" if pending.retry_at is not None else "after a reload: rerankd reload"
    return [
        f"  model    {pending.name} is NOT served: {reason}",
        f"           rerankd retries {again}.",
    ]


def _of_model(served: ServedModel) -> list[str]:
    lines = [
        f"  model    {served.name}, in {_short(served.model.path)}",
        f"  scoring  {served.model.resolution.explanation}",
        f"  engine   {served.engine_name}: {served.engine_reason}",
    ]
    if served.state.phase == "unloaded":
        lines.append("           It is loaded at its first request.")
    elif served.state.phase == "failed":
        lines.append("           Loading failed: see the log lines above.")
    return lines


def _notes(reranker: Reranker, sock: socket.socket) -> list[str]:
    settings = reranker.settings
    host = sock.getsockname()[0] if sock.family != socket.AF_UNIX else ""
    lines = []
    registry = reranker.registry
    if registry.models and registry.models[0].name.startswith("builtin:") and not registry.cascades:
        lines += [
            "  This is a small model for a first try. To get a better one, stop rerankd and run:",
            "    rerankd pull bge-reranker-v2-m3 && rerankd serve",
        ]
    elif registry.models and not settings.model and not settings.models:
        lines.append(
            "  This is the model that was pulled last. To serve another one: rerankd serve NAME (see rerankd "
            "list)"
        )
    if host in ("0.0.0.0", "::") and not reranker.keys:
        lines.append(
            "  Everyone who can reach this machine can use this server. To require a key, set --api-key."
        )
    return lines


def _short(path: Path) -> str:
    """Return a path with ~ for the user's home folder."""
    home = Path(os.path.expanduser("~"))  # "~" itself for a user without a home
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
