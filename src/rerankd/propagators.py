"""The variables of OpenTelemetry in a program. FastAPI and the SDK of MCP import OpenTelemetry's API, also
where no traces are sent. That import fails if OTEL_PROPAGATORS names a propagator that is not installed, and
other values that are not accepted (OTEL_BSP_SCHEDULE_DELAY=abc) are logged with a traceback."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from importlib.metadata import entry_points

_log = logging.getLogger("rerankd")
_NAME = "OTEL_PROPAGATORS"


def drop_missing(environ: MutableMapping[str, str]) -> None:
    """Leave only the propagators that are installed, and log the others: OpenTelemetry's specification asks
    to ignore them. From now on, what OpenTelemetry logs has one line. Call it before the import of FastAPI or
    MCP."""
    own = logging.getLogger("opentelemetry")
    if not any(isinstance(one, _OneLine) for one in own.handlers):
        own.addHandler(_OneLine())
        own.propagate = False
    if not environ.get(_NAME):
        return
    known = entry_points(group="opentelemetry_propagator").names
    given = [name.strip() for name in environ[_NAME].split(",")]
    missing = [name for name in given if name not in known and name.lower() != "none"]
    if missing:
        _log.warning("%s: ignored, because they are not installed: %s", _NAME, ", ".join(map(repr, missing)))
        # Without any name, OpenTelemetry uses its default.
        environ[_NAME] = ",".join(name for name in given if name not in missing)


class _OneLine(logging.Handler):
    """Passes on what OpenTelemetry logs, with the reason of an error in place of its traceback."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        reason = f" ({error})" if error is not None and str(error) else ""
        _log.log(record.levelno, "OpenTelemetry: %s%s", record.getMessage(), reason)
