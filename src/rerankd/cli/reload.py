"""`rerankd reload`: restart a model's engine in the running server."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from rerankd import config
from rerankd.cli import running_server
from rerankd.cli.output import Config, say

_TIMEOUT_S = 60


def reload(
    model: Annotated[str, typer.Argument(help="A name from `rerankd status`.")],
    config_file: Config = None,
) -> None:
    """Restart a model's engine in the running server.

    A failed engine is restarted immediately. A running engine is replaced without failing a request. A
    model file that has changed is read again. The setting admin_api is not required.
    """
    settings = config.from_machine({}, config_file)
    path = f"/v1/models/{quote(model, safe='', errors='replace')}/reload"
    answer = running_server.request(
        settings, "POST", path, status=202, has="model", timeout_s=_TIMEOUT_S, json={}
    )
    say(f"{answer['model']} is being reloaded. To see when it is ready: rerankd status")
