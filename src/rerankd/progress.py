"""Progress reports of long operations, and sizes as text (639 MiB)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]
"""Called with a description of the work, the amount done and the total, in bytes or steps. An exception that
it raises stops the work."""

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def silent(what: str, done: int, total: int) -> None:
    """Discard progress reports."""


@contextlib.contextmanager
def step(progress: Progress, what: str) -> Iterator[None]:
    """Report the start of an operation that reports no progress itself, and its end if it succeeds."""
    progress(what, 0, 1)
    yield
    progress(what, 1, 1)


def size_words(size_bytes: int) -> str:
    """Return a size as text: `639 MiB`."""
    size, unit = float(size_bytes), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {_UNITS[unit]}" if size < 1000 else f"{size:.0f} {_UNITS[unit]}"
