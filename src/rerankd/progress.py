"""How long work reports how far it is, and sizes as a person says them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is, in bytes or steps; what it
raises ends the work."""

_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def silent(what: str, done: int, total: int) -> None:
    """The progress that nobody is told."""


@contextlib.contextmanager
def step(progress: Progress, what: str) -> Iterator[None]:
    """Report the begin of something whose own progress is not known, and its end if it succeeds."""
    progress(what, 0, 1)
    yield
    progress(what, 1, 1)


def size_words(size_bytes: int) -> str:
    """A size as a person says it: `639 MiB`."""
    size, unit = float(size_bytes), 0
    while size >= 1024 and unit < len(_UNITS) - 1:
        size, unit = size / 1024, unit + 1
    return f"{size:.3g} {_UNITS[unit]}" if size < 1000 else f"{size:.0f} {_UNITS[unit]}"
