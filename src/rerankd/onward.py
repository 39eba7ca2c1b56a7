"""What the request of this task brings along for another server that answers it: its id, and the servers that
it has passed, so that a circle of servers is noticed."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass

# Headers of a request to another rerankd: the servers that it has passed, and who sent it to the first.
PASSED_HEADER = "x-rerankd-passed"
CLIENT_HEADER = "x-rerankd-client"
WEIGHT_HEADER = "x-rerankd-client-weight"

MOST_SERVERS = 8
"""A request passes at most this many servers."""


@dataclass(frozen=True, slots=True)
class Origin:
    """`passed`: identities of servers, the first one first. `request_id`: "" if there is none."""

    passed: tuple[str, ...] = ()
    request_id: str = ""


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
