"""What the request of this task brings along for another server that answers it: the servers that it has
passed, so that a circle of servers is noticed, and the headers of its trace."""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

# Headers of a request to another rerankd: the servers that it has passed, and who sent it to the first.
PASSED_HEADER = "x-rerankd-passed"
CLIENT_HEADER = "x-rerankd-client"
WEIGHT_HEADER = "x-rerankd-client-weight"

MOST_SERVERS = 8
"""A request passes at most this many servers."""


@dataclass(frozen=True, slots=True)
class Origin:
    """`passed`: identities of servers, the first one first. `request_id`: "" if there is none. `trace`
    returns headers in W3C's format."""

    passed: tuple[str, ...] = ()
    request_id: str = ""
    trace: Callable[[], Mapping[str, str]] = field(default=dict)


_NOWHERE = Origin()
_origin: contextvars.ContextVar[Origin] = contextvars.ContextVar("origin", default=_NOWHERE)


def current() -> Origin:
    """The origin of this task's request."""
    return _origin.get()


def begins(origin: Origin) -> None:
    """Set the origin of the request of this task, and of the tasks that it creates."""
    _origin.set(origin)


def passed(header: str) -> tuple[str, ...]:
    """The servers in a header; more than the limit if it is malformed, since this is refused."""
    return tuple(header.replace(",", " ").split()[: MOST_SERVERS + 1])
