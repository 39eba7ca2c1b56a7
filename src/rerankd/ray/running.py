"""Run the application for Ray Serve from the command line: connect, deploy, and remove it again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import ray
from ray import serve

from rerankd.config import Settings
from rerankd.errors import Conflict, EngineUnavailable
from rerankd.ray.serve_app import application
from rerankd.ray.serve_plan import INGRESS

APP = "rerankd"
# Requests and results are small, and do not go through it.
_OBJECT_STORE_BYTES = 100 * 2**20


@contextlib.contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or run one on this machine meanwhile. Raises EngineUnavailable."""
    address = address or os.environ.get("RAY_ADDRESS")
    own = {} if address else {"include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    try:
        ray.init(address or "local", log_to_driver=False, logging_level="warning", **own)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise EngineUnavailable(
            f"Ray could not be reached at {address or 'this machine'}: {error}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def served(settings: Settings) -> Iterator[None]:
    """Serve the models of the settings until the block ends; replicas start meanwhile. Raises ConfigError,
    and Conflict if the cluster serves already."""
    if not serve.status().proxies:
        http = {"host": settings.host, "port": settings.port}
        serve.start(http_options=http, logging_config={"log_level": "WARNING"})
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


def is_listening() -> bool:
    """Whether the ingress answers."""
    app = serve.status().applications.get(APP)
    ingress = app.deployments.get(INGRESS) if app else None
    return ingress is not None and ingress.status == "HEALTHY"
