"""`rerankd reload`."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from rerankd import config
from rerankd.cli import running
from rerankd.cli.output import Config, say
from rerankd.errors import RerankdError

_TIMEOUT_S = 60


def reload(
    model: Annotated[str, typer.Argument(help="A name of `rerankd status`.")],
    config_file: Config = None,
) -> None:
    """Restart a model's engine in the running server.

    An engine that has failed is started at once. One that runs is replaced without a failed request, and a
    model file that has changed is read anew. The server needs no admin_api for this.
    """
    settings = config.from_machine({}, config_file)
    told = _ask(settings, model)
    say(f"{told.get('model', model)} is being reloaded. To see when it is ready: rerankd status")


def _ask(settings: config.Settings, model: str) -> dict[str, Any]:
    """The server's answer. Raises RerankdError where there is no server, or it refuses."""
    import httpx

    try:
        with running.client(settings) as client:
            answer = client.post(f"/v1/models/{quote(model, safe='')}/reload", json={}, timeout=_TIMEOUT_S)
            told = answer.json()
    except httpx.HTTPError as error:
        raise running.no_server(settings, error) from None
    except ValueError:
        told = None
    if answer.status_code == 202 and isinstance(told, dict):
        return told
    message = told.get("message") if isinstance(told, dict) else None
    raise RerankdError(
        f"The server at {running.url(settings)} says: {message}"
        if isinstance(message, str)
        else f"What answers at {running.url(settings)} is not a rerankd that knows how to reload a model."
    )
