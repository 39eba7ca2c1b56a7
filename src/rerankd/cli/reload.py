"""`rerankd reload`."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

import typer

from rerankd import config
from rerankd.cli import running_server
from rerankd.cli.output import Config, say

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
    path = f"/v1/models/{quote(model, safe='')}/reload"
    knows = "how to reload a model"
    told = running_server.ask(
        settings, "POST", path, status=202, has="model", knows=knows, timeout_s=_TIMEOUT_S, json={}
    )
    say(f"{told['model']} is being reloaded. To see when it is ready: rerankd status")
