"""Run the application for Ray Serve from the command line: deploy it, and remove it again."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ray import serve

from rerankd.config import Settings
from rerankd.errors import Conflict
from rerankd.ray.serve_app import application
from rerankd.ray.serve_plan import INGRESS

APP = "rerankd"


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
