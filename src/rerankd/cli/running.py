"""The server that runs on this machine, as other commands reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rerankd.config import Settings
from rerankd.errors import RerankdError

if TYPE_CHECKING:
    import httpx


def url(settings: Settings) -> str:
    """Where the server of these settings is reached from this machine."""
    return settings.local_url


def client(settings: Settings) -> httpx.Client:
    """A client that asks it, with the key if there is one."""
    import httpx

    headers = {b"authorization": f"Bearer {settings.api_key}".encode()} if settings.api_key else {}
    return httpx.Client(base_url=url(settings), headers=headers, trust_env=False)


def no_server(settings: Settings, error: Exception) -> RerankdError:
    """What to tell where nothing answers."""
    return RerankdError(
        f"No server answers at {url(settings)} ({type(error).__name__}). Start one with rerankd serve, or "
        "name another place with RERANKD_HOST and RERANKD_PORT."
    )
