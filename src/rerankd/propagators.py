"""The variable OTEL_PROPAGATORS. FastAPI and the SDK of MCP import OpenTelemetry's API, also where no traces
are sent, and that import fails if the variable names a propagator that is not installed."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from importlib.metadata import entry_points

_log = logging.getLogger("rerankd")
_NAME = "OTEL_PROPAGATORS"


def drop_missing(environ: MutableMapping[str, str]) -> None:
    """Leave only the propagators that are installed, and log the others: OpenTelemetry's specification asks
    to ignore them. Call it before the import of FastAPI or MCP."""
    if not environ.get(_NAME):
        return
    known = entry_points(group="opentelemetry_propagator").names
    given = [name.strip() for name in environ[_NAME].split(",")]
    missing = [name for name in given if name not in known and name.lower() != "none"]
    if missing:
        _log.warning("%s: ignored, because they are not installed: %s", _NAME, ", ".join(map(repr, missing)))
        # Without any name, OpenTelemetry uses its default.
        environ[_NAME] = ",".join(name for name in given if name not in missing)
