"""The server that runs on this machine, as other commands reach it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rerankd.config import Settings
from rerankd.errors import RerankdError

if TYPE_CHECKING:
    import httpx


def client(settings: Settings) -> httpx.Client:
    """A client that asks it, with the key if there is one."""
    import httpx

    headers = {b"authorization": f"Bearer {settings.api_key}".encode()} if settings.api_key else {}
    return httpx.Client(base_url=settings.local_url, headers=headers, trust_env=False)


def ask(
    settings: Settings,
    method: str,
    path: str,
    *,
    status: int,
    has: str,
    knows: str,
    timeout_s: float,
    **body: Any,
) -> dict[str, Any]:
    """The JSON object that the server answers with this status and this key in it; `body` goes to the client.

    Raises RerankdError where there is no server, it refuses, or what answers does not know `knows`.
    """
    import httpx

    try:
        with client(settings) as asked:
            answer = asked.request(method, path, timeout=timeout_s, **body)
            told = answer.json()
    except httpx.HTTPError as error:
        raise RerankdError(
            f"No server answers at {settings.local_url} ({type(error).__name__}). Start one with rerankd "
            "serve, or name another place with RERANKD_HOST and RERANKD_PORT."
        ) from None
    except ValueError:
        told = None
    if answer.status_code == status and isinstance(told, dict) and has in told:
        return told
    message = told.get("message") if isinstance(told, dict) else None
    raise RerankdError(
        f"The server at {settings.local_url} says: {message}"
        if isinstance(message, str)
        else f"What answers at {settings.local_url} is not a rerankd that knows {knows}."
    )
