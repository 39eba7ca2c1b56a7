"""The sender of a request, for fair shares of a queue."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Client:
    """The sender of a request. All requests with the same name share one share of the queue; `weight` is
    relative to other clients."""

    name: str = ""
    weight: float = 1.0


ANONYMOUS = Client()
"""The client if clients are not distinguished."""
