"""Log lines of the service: as text or as JSON, with the request that they belong to, and none without
end."""

from __future__ import annotations

import contextvars
import json
import logging
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Literal

LogFormat = Literal["text", "json"]

_NOTHING: Mapping[str, str] = {}
_request: contextvars.ContextVar[Mapping[str, str]] = contextvars.ContextVar("request", default=_NOTHING)
# Of lines that are alike, so many in so long are written.
_ALIKE = 20
_ALIKE_S = 10.0
_CHATTY = ("gguf", "httpx", "httpx2", "uvicorn")


def belongs_to(request_id: str, key: str = "") -> None:
    """Lines that this task and those that it starts write from now on belong to a request; `key` is the name
    of the client's key."""
    _request.set({"request_id": request_id, **({"key": key} if key else {})})


def configure(level: str, log_format: LogFormat) -> None:
    """Send all log lines to standard error. Libraries only say what is wrong, unless `level` is debug."""
    handler = logging.StreamHandler()
    handler.setFormatter(Json() if log_format == "json" else Text())
    handler.addFilter(Alike())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    if level != "debug":
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)


def is_json() -> bool:
    """Whether all that is said goes to a program that reads JSON."""
    return any(isinstance(handler.formatter, Json) for handler in logging.getLogger().handlers)


class Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        about = " ".join(_request.get().values())
        return super().formatMessage(record) + (f" [{about}]" if about else "")


class Json(logging.Formatter):
    """One object a line."""

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


class Alike(logging.Filter):
    """Lets through the first lines of one kind in each period, and says how many more there were.

    A kind is a place in the code. A fault that repeats itself, such as a lack of descriptors at each accept,
    would fill a disk otherwise.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._now = now
        self._since = 0.0
        self._counts: dict[tuple[str, str, int], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._now()
        if now - self._since >= _ALIKE_S:
            self._since = now
            self._tell()
        kind = (record.name, record.pathname, record.lineno)
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._counts[kind] <= _ALIKE

    def _tell(self) -> None:
        counts, self._counts = self._counts, {}
        for (name, *_), count in counts.items():
            if count > _ALIKE:
                logging.getLogger(name).warning("%d more log lines like these were left out", count - _ALIKE)


def tell(text: str) -> None:
    """What the program tells its user, as a line of the log."""
    logging.getLogger("rerankd").info("%s", text)
