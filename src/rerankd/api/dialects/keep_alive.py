"""Ollama's `keep_alive`: how long a model stays loaded after its last request. Pure."""

from __future__ import annotations

import math
import re

# Go's time.ParseDuration, which Ollama uses.
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_NUMBER = r"(?:[0-9]+\.?[0-9]*|\.[0-9]+)"
_PART = re.compile(rf"({_NUMBER})({'|'.join(_UNITS)})")
_DURATION = re.compile(rf"(?:{_NUMBER}(?:{'|'.join(_UNITS)}))+")


def keep_alive_s(value: object) -> float:
    """Return a `keep_alive` in seconds: 0 unloads the model at once; inf, sent as a negative value, never.

    It is a number of seconds, also as a string, or a duration in Go's notation, such as "1h30m". Raises
    ValueError for anything else.
    """
    if isinstance(value, int | float) and type(value) is not bool:
        seconds = float(value)
    else:
        text = value.strip() if isinstance(value, str) else ""
        sign = -1.0 if text.startswith("-") else 1.0
        text = text.removeprefix("-") if sign < 0 else text.removeprefix("+")
        if re.fullmatch(_NUMBER, text):
            seconds = sign * float(text)
        elif _DURATION.fullmatch(text):
            seconds = sign * sum(float(count) * _UNITS[unit] for count, unit in _PART.findall(text))
        else:
            seconds = math.nan
    if math.isnan(seconds):
        raise ValueError('must be a number of seconds or a duration such as "5m" (0 unloads, -1 keeps)')
    return math.inf if seconds < 0 else seconds
