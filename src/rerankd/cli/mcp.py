"""`rerankd mcp`: tools for agents over the Model Context Protocol."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from rerankd import config, keys, logs, propagators
from rerankd.cli import completion
from rerankd.cli.output import Config, say
from rerankd.errors import ConfigError

_DEFAULT_PORT = 11441


def mcp(
    folder: Annotated[
        Path | None,
        typer.Option(help="Folder with text files that clients may search.", show_default="no search"),
    ] = None,
    model: completion.OwnModel = None,
    http: Annotated[
        bool, typer.Option("--http", help="Serve over streamable HTTP instead of standard input and output.")
    ] = False,
    host: Annotated[
        str, typer.Option(help="With --http: address to listen on.", show_default="127.0.0.1")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="With --http: port to listen on.", show_default="11441", min=0, max=65535)
    ] = _DEFAULT_PORT,
    config_file: Config = None,
) -> None:
    """Offer the tools rerank and search to agents, over the Model Context Protocol (MCP).

    An MCP client, such as Claude Desktop or VS Code, starts this command and talks to it over standard input
    and output. The tool rerank orders texts by their relevance to a query. With --folder, the tool search
    finds the best passages of its text files; nothing outside of the folder is read.

    Uses the server running on this machine. If none is running, starts an engine at the first call.
    """
    from rerankd import mcp_server

    mcp_server.check_installed()
    settings = config.from_machine({"model": (model,) if model else None}, config_file)
    logs.configure(settings.log_level, settings.log_format)
    propagators.drop_missing(os.environ)
    root = _readable(folder) if folder is not None else None
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(
            _serve_http(settings, root, host, port, asks_server=not model)
            if http
            else _serve_stdio(settings, root, asks_server=not model)
        )


def _readable(folder: Path) -> Path:
    root = folder.expanduser().resolve()
    if not root.is_dir():
        raise ConfigError(f"--folder: {folder} is not a folder.")
    if root == root.parent:
        raise ConfigError("--folder: this is the whole file system. Name the folder with your documents.")
    return root


async def _serve_stdio(settings: config.Settings, root: Path | None, *, asks_server: bool) -> None:
    from rerankd.mcp_server import protocol, transports
    from rerankd.mcp_server.scorer import Scorer

    if sys.stdin.isatty():
        say(
            "rerankd mcp talks to an MCP client, which starts it: see "
            "https://rerankd.github.io/rerankd/mcp/. Ctrl-C stops it."
        )
    scorer = Scorer(settings, asks_server=asks_server)
    await transports.serve_stdio(protocol.server(scorer, root), scorer)


async def _serve_http(
    settings: config.Settings, root: Path | None, host: str, port: int, *, asks_server: bool
) -> None:
    from rerankd.api import listen_address
    from rerankd.mcp_server import protocol, transports
    from rerankd.mcp_server.scorer import Scorer

    known = keys.read(settings)
    with listen_address.bind(host, port) as sock:
        url = f"{listen_address.url([sock])}{transports.PATH}"
        own: dict[str, Any] = {"host": host, "port": sock.getsockname()[1]}
        scorer = Scorer(settings, asks_server=asks_server)

        def listening() -> None:
            say(f"rerankd mcp serves {'rerank and search' if root else 'rerank'} at {url}")
            if host in ("0.0.0.0", "::") and not known:
                say(
                    "  Everyone who can reach this machine can use it. To require a key, set RERANKD_API_KEY."
                )

        await transports.serve_http(
            protocol.server(scorer, root), scorer, config.override(settings, own), known, sock, listening
        )
