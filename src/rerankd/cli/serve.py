"""`rerankd serve`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from rerankd import __version__, config
from rerankd.cli.output import Config, progress, say


def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="Names of `rerankd list`, GGUF files, builtin:e5, or names of [models.NAME] sections.",
            show_default="the settings', or the one pulled last, or builtin:e5",
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 picks a free one.", show_default="11440", min=0, max=65535)
    ] = None,
    alias: Annotated[
        list[str] | None, typer.Option(help="Name to serve the model under; may be repeated.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Ask for this key. Better set RERANKD_API_KEY.")] = None,
    api_prefix: Annotated[str | None, typer.Option(help="Serve all paths under this one too.")] = None,
    engine: Annotated[
        config.EngineKind | None,
        typer.Option(help="What runs the model; auto takes the fastest that can.", show_default="auto"),
    ] = None,
    gpu_layers: Annotated[
        int | None, typer.Option(help="Layers on the GPU; -1 for as many as fit there.", show_default="-1")
    ] = None,
    force: Annotated[
        bool | None, typer.Option("--force", help="Serve a model even if it fails the check at load.")
    ] = None,
    config_file: Config = None,
) -> None:
    """Serve rerankers over HTTP until Ctrl-C.

    Without MODEL it serves the one that was pulled last; where none was, the small built-in one, which is
    fetched at the first start. With several, a request's "model" picks one.
    """
    flags = {
        "model": tuple(models) if models else None,
        "host": host,
        "port": port,
        "alias": tuple(alias) if alias else None,
        "api_key": api_key,
        "api_prefix": api_prefix,
        "engine": engine,
        "gpu_layers": gpu_layers,
        "force": force,
    }
    settings = config.from_machine(flags, config_file)
    logging.basicConfig(
        level=settings.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if settings.log_level != "debug":
        for chatty in ("gguf", "httpx", "httpx2", "uvicorn"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        asyncio.run(_serve(settings, partial(config.from_machine, flags, config_file)))
    except asyncio.CancelledError:
        sys.exit(0)


async def _serve(settings: config.Settings, reread: Callable[[], config.Settings]) -> None:
    from rerankd.api.listen import bind
    from rerankd.prepare import prepare, wanted
    from rerankd.service import Reranker

    # Until the server takes over, a signal ends the start, wherever it is, in order.
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with bind(settings.host, settings.port) as sock:
        async with contextlib.AsyncExitStack() as stack:
            with progress() as report:
                models = [
                    await asyncio.to_thread(prepare, settings, one, report)
                    for one in await asyncio.to_thread(wanted, settings)
                ]
                report(f"loading {', '.join(model.path.name for model in models)}", 0, 0)
                # The web framework takes about as long to import as a small model to load.
                threading.Thread(target=_import_web, daemon=True).start()
                reranker = await stack.enter_async_context(Reranker(settings, prepared=models))
            server, web = _import_web()
            host, port = sock.getsockname()[:2]
            started = partial(say, _greeting(reranker, host, port))
            await server.serve(web.create_app(reranker=reranker), sock, started, reranker, reread)
    say("rerankd has stopped.")


def _import_web() -> tuple[Any, Any]:
    from rerankd.api import app as web
    from rerankd.api import server

    return server, web


def _greeting(reranker: Any, host: str, port: int) -> str:
    """All that a person needs after the start, in groups; the last line says where clients go."""
    shown = "localhost" if host in ("127.0.0.1", "0.0.0.0", "::", "::1") else host
    fleet = reranker.fleet.models
    lines = [
        f"rerankd {__version__} serves {', '.join(served.name for served in fleet)} at http://{shown}:{port}",
        "  Open that address in a browser to try it, see its state and connect programs.",
    ]
    for served in fleet:
        lines += ["", *_of_model(served)]
    lines.append(f"  logs     {_short(fleet[0].log.parent)}")
    notes = _notes(reranker, host)
    return "\n".join(
        [
            *lines,
            *(("", *notes) if notes else ()),
            "",
            "  In Dify, add a model of the provider OpenAI-API-compatible:",
            "    Model Type        Rerank",
            f"    Model Name        {reranker.model.name}",
            f"    API endpoint URL  http://{_address_for_others(host)}:{port}/v1",
        ]
    )


def _of_model(served: Any) -> list[str]:
    lines = [
        f"  model    {served.name}, in {_short(served.model.path)}",
        f"  scoring  {served.model.verdict.explain}",
        f"  engine   {served.engine_name}: {served.model.engine.reason}",
    ]
    if served.state.phase == "unloaded":
        lines.append("           It is loaded at the first request for it.")
    elif served.state.phase == "failed":
        lines.append("           It could not be loaded: see above.")
    return lines


def _notes(reranker: Any, host: str) -> list[str]:
    settings = reranker.settings
    lines = []
    if reranker.model.name.startswith("builtin:"):
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
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _address_for_others(host: str) -> str:
    return "THIS-MACHINE" if host in ("0.0.0.0", "::") else host
