"""Run the application for Ray Serve from the command line: deploy it, and remove it again."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

from ray import serve
from ray.exceptions import RayTaskError

from rerankd.config import Settings
from rerankd.errors import AddressInUse, Conflict
from rerankd.ray.serve_app import application
from rerankd.ray.serve_plan import INGRESS

APP = "rerankd"


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[None]:
    """Serve the models of the settings until the block ends; replicas start meanwhile. Raises ConfigError,
    Conflict if the cluster serves already, and AddressInUse."""
    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # the command says itself what it does
    if not serve.status().proxies:
        _start_proxies(settings)
    elif APP in serve.status().applications:
        raise Conflict(f"The cluster already serves an application named {APP}. To remove it: serve shutdown")
    target = serve.RunTarget(application(settings), name=APP, route_prefix="/")
    try:
        serve.run_many([target], wait_for_applications_running=False)
        yield
    finally:
        serve.delete(APP)
        if not serve.status().applications:
            serve.shutdown()


def _start_proxies(settings: Settings) -> None:
    try:
        serve.start(
            http_options={"host": settings.host, "port": settings.port},
            logging_config={"log_level": "WARNING"},
        )
    except RayTaskError as error:
        serve.shutdown()
        reason = str(error.cause).rstrip(".")
        raise AddressInUse(
            f"Ray can't serve at {settings.host}:{settings.port}: {reason}. Choose another --port or --host."
        ) from error


def is_listening() -> bool:
    """Whether the ingress answers."""
    app = serve.status().applications.get(APP)
    ingress = app.deployments.get(INGRESS) if app else None
    return ingress is not None and ingress.status == "HEALTHY"
