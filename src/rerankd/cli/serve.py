"""`rerankd serve`."""

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
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rerankd import __version__, config, logs
from rerankd.cli.output import Config, progress, say
from rerankd.cli.setting_options import of_backends, takes

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
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Names of `rerankd list`, GGUF files, builtin:e5, or names of [models.NAME] sections.",
            show_default="the settings', or the one pulled last, or builtin:e5",
        ),
    ] = None,
    config_file: Config = None,
    **flags: Any,
) -> None:
    """Serve rerankers over HTTP until Ctrl-C.

    Without MODEL it serves the one that was pulled last; where none was, the small built-in one, which is
    fetched at the first start. With several, a request's "model" picks one.
    """
    flags["model"] = models
    # What may be repeated is empty where it is not given.
    flags = {name: tuple(one) if isinstance(one, list) else one for name, one in flags.items() if one != []}
    early = _handle_early_signals()
    settings = config.from_machine(flags, config_file)
    logs.configure(settings.log_level, settings.log_format)
    try:
        asyncio.run(_serve(settings, partial(config.from_machine, flags, config_file), early))
    except asyncio.CancelledError:
        sys.exit(0)


def _handle_early_signals() -> list[int]:
    """Signals that come before the event loop runs: SIGHUP is kept for it, SIGTERM ends at once and in order,
    since nothing has been started."""
    early: list[int] = []
    signal.signal(signal.SIGHUP, lambda number, _: early.append(number))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    return early


async def _serve(
    settings: config.Settings, reread: Callable[[], config.Settings], early: Sequence[int]
) -> None:
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
        life = Lifecycle(reranker, reread, notifier, has_heirs=bool(passed))
        life.handle_signals()
        waiting = contextlib.ExitStack()
        shown = waiting.enter_context(progress())

        def report(what: str, done: int, total: int) -> None:
            # After the start nothing is shown any more, and a download that is tried again goes on.
            with contextlib.suppress(KeyboardInterrupt):
                shown(what, done, total)

        def listening() -> None:
            if not reranker.registry.started:
                say(_first_words(reranker, listen_address.url(sockets), passed=bool(passed)))

        def started() -> None:
            waiting.close()
            say(_greeting(reranker, sockets))

        if early:
            life.reload()
        with waiting:
            await life.run(sockets, partial(_server, reranker, listening), started, report)
    say("rerankd has stopped.")


async def _server(reranker: Reranker, listening: Callable[[], None]) -> Server:
    """The web server. Its import takes about as long as a small model to load, which goes on meanwhile."""
    loop = asyncio.get_running_loop()
    imported = asyncio.Event()

    def import_web() -> None:
        import_module("rerankd.api.app")
        import_module("rerankd.api.server")
        with contextlib.suppress(RuntimeError):  # the loop has been closed: nobody waits
            loop.call_soon_threadsafe(imported.set)

    # A daemon: a start that fails does not wait for it.
    threading.Thread(target=import_web, daemon=True).start()
    await imported.wait()
    from rerankd.api import app, server

    return server.Server(app.create_app(reranker=reranker), settings=reranker.settings, listening=listening)


def _first_words(reranker: Reranker, url: str, *, passed: bool) -> str:
    names = ", ".join(entry.name for entry in reranker.registry.entries)
    whence = ", on what the service manager passed" if passed else ""
    return (
        f"rerankd {__version__} listens at {url}{whence}\n"
        f"  It is loading {names}; requests wait until that is done, and {url}/ready tells how far it is."
    )


def _greeting(reranker: Reranker, sockets: Sequence[socket.socket]) -> str:
    """All that a person needs after the start, in groups; the last line says where clients go."""
    from rerankd.api import listen_address

    registry, url = reranker.registry, listen_address.url(sockets)
    first = registry.models[0]
    lines = [
        f"rerankd {__version__} serves {', '.join(served.name for served in registry.models)} at {url}",
        "  Open that address in a browser to try it, see its state and connect programs.",
    ]
    for served in registry.models:
        lines += ["", *_of_model(served)]
    lines.append(f"  logs     {_short(first.log.parent)}")
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
            f"    Model Name        {first.name}",
            f"    API endpoint URL  {listen_address.url_for_others(sockets)}/v1",
        ]
    )


def _of_pending(pending: PendingModel) -> list[str]:
    reason = pending.error.message.replace("\n", "\n           ") if pending.error is not None else ""
    again = "by itself" if pending.retry_at is not None else "after a reload: kill -HUP PID"
    return [
        f"  model    {pending.name} is NOT served: {reason}",
        f"           It is tried again {again}.",
    ]


def _of_model(served: ServedModel) -> list[str]:
    lines = [
        f"  model    {served.name}, in {_short(served.model.path)}",
        f"  scoring  {served.model.resolution.explanation}",
        f"  engine   {served.engine_name}: {served.engine_reason}",
    ]
    if served.state.phase == "unloaded":
        lines.append("           It is loaded at the first request for it.")
    elif served.state.phase == "failed":
        lines.append("           It could not be loaded: see above.")
    return lines


def _notes(reranker: Reranker, sock: socket.socket) -> list[str]:
    settings = reranker.settings
    host = sock.getsockname()[0] if sock.family != socket.AF_UNIX else ""
    lines = []
    if reranker.registry.models[0].name.startswith("builtin:"):
        lines += [
            "  This is a small model for trying things out. For a real reranker, and then start again:",
            "    rerankd pull bge-reranker-v2-m3",
        ]
    elif not settings.model and not settings.models:
        lines.append(
            "  It is the model that was pulled last. For another one: rerankd serve NAME (rerankd list)"
        )
    if host in ("0.0.0.0", "::") and not reranker.keys:
        lines.append("  Whoever can reach this machine can use it: ask for a key with --api-key.")
    return lines


def _short(path: Path) -> str:
    """A path as people write it, from their own folder on."""
    home = Path(os.path.expanduser("~"))  # "~" itself for a user without a home
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
