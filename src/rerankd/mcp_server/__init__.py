"""`rerankd mcp`: the tools rerank and search for agents, over the Model Context Protocol (MCP).

Only this folder imports the package `mcp`, the protocol's official SDK.
"""

from __future__ import annotations

from importlib.util import find_spec

from rerankd.errors import MissingExtra


def check_installed() -> None:
    """Raise MissingExtra unless the libraries of `rerankd[mcp]` are installed."""
    missing = [name for name in ("Stemmer", "bm25s", "mcp") if find_spec(name) is None]
    if missing:
        raise MissingExtra(
            f"rerankd mcp needs libraries that are not installed: {', '.join(missing)}. To install them: "
            "pip install 'rerankd[mcp]'"
        )
