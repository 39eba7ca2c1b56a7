"""HTTP requests of the commands to the server running on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rerankd.config import Settings
from rerankd.errors import RerankdError

if TYPE_CHECKING:
    import httpx


def client(settings: Settings) -> httpx.Client:
    """Return an HTTP client for the server, which sends the configured API key."""
    import httpx

    headers = {b"authorization": f"Bearer {settings.api_key}".encode()} if settings.api_key else {}
    return httpx.Client(base_url=settings.local_url, headers=headers, trust_env=False)


def answers(settings: Settings) -> bool:
    """Whether a rerankd answers at the configured address, also while it loads its models."""
    import httpx

    try:
        with client(settings) as http:
            value = http.get("/ready", timeout=2).json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError):
        return False
    return isinstance(value, dict) and "status" in value


def request(
    settings: Settings,
    method: str,
    path: str,
    *,
    status: int,
    has: str,
    timeout_s: float,
    **body: Any,
) -> dict[str, Any]:
    """Send a request and return the JSON object of the response; `body` is passed to httpx.

    Raises RerankdError if no server answers, or if the response has another status or lacks the key `has`.
    """
    import httpx

    try:
        with client(settings) as http:
            response = http.request(method, path, timeout=timeout_s, **body)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: no host name, no key
        raise RerankdError(
            f"No server answers at {settings.local_url} ({type(error).__name__}). Start one with rerankd "
            "serve, or set another address with RERANKD_HOST and RERANKD_PORT."
        ) from None
    try:
        value = response.json()
    except ValueError:
        value = None
    if response.status_code == status and isinstance(value, dict) and has in value:
        return value
    message = value.get("message") if isinstance(value, dict) else None
    raise RerankdError(
        f"The server at {settings.local_url} reports: {message}"
        if isinstance(message, str)
        else f"The server at {settings.local_url} is not a rerankd that supports {method} {path}."
    )
