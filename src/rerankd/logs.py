"""Logging: text or JSON lines, request ids, and rate limiting of repeated lines."""

from __future__ import annotations

import contextvars
import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from rerankd.files import append_log

LogFormat = Literal["text", "json"]

_NOTHING: Mapping[str, str] = {}
_request: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("request", default=_NOTHING)
# At most this many similar lines are written in this many seconds.
_MOST_REPEATS = 20
_PERIOD_S = 10.0
_CHATTY = ("gguf", "httpx", "httpx2", "mcp", "uvicorn")


def belongs_to(request_id: str, key: str = "") -> None:
    """Add a request id to the log lines of this task and its child tasks; `key` is the name of the API
    key."""
    _request.set({"request_id": request_id, **({"key": key} if key else {})})


def configure(level: str, log_format: LogFormat, file: Path | None = None) -> None:
    """Send all log lines to standard error, and to `file`. Noisy libraries log only warnings unless `level`
    is debug."""
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if file is not None:
        handlers.append(logging.StreamHandler(_File(file)))
    for handler in handlers:
        handler.setFormatter(Json() if log_format == "json" else Text())
        handler.addFilter(RepeatLimit())
    logging.basicConfig(level=level.upper(), handlers=handlers, force=True)
    if level != "debug":
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)


def is_json() -> bool:
    """Whether the log is written as JSON."""
    return any(isinstance(handler.formatter, Json) for handler in logging.getLogger().handlers)


class _File:
    """The stream of a log file beside standard error, so that a full or read-only disk is ignored."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, text: str) -> None:
        append_log(self._path, text.encode(errors="replace"))


class Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        about = " ".join(_request.get().values())
        return super().formatMessage(record) + (f" [{about}]" if about else "")


class Json(logging.Formatter):
    """Formats each record as one JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        value = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_request.get(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            value["exception"] = self.formatException(record.exc_info)
        return json.dumps(value, ensure_ascii=False)


class RepeatLimit(logging.Filter):
    """Limits repeated lines: passes the first lines of each kind in a period and counts the rest.

    A kind is a line of code. Without this filter, a repeated fault, such as running out of file descriptors
    at each accept, would fill the disk.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._since = 0.0
        self._counts: dict[tuple[str, str, int], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._now()
        if now - self._since >= _PERIOD_S:
            self._since = now
            self._report()
        kind = (record.name, record.pathname, record.lineno)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._counts[kind] <= _MOST_REPEATS

    def _report(self) -> None:
        counts, self._counts = self._counts, {}
        for (name, *_), count in counts.items():
            if count > _MOST_REPEATS:
                logging.getLogger(name).warning(
                    "%d more log lines like these were suppressed.", count - _MOST_REPEATS
                )


def tell(text: str) -> None:
    """Write a message for the user as a log line."""
    logging.getLogger("rerankd").info("%s", text)
