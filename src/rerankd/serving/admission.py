"""(pure) Who is let into the queue of a model: limits on all requests together, and a share per client.

A client may hold at most 3 times what it leaves free. So one client alone gets 3/4 of a bound, and n clients
that take all they can get 3 / (3n + 1) each: 1 / (3n + 1) stays free for the next one. Nothing has to be set
or known of how many clients there are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rerankd.config import Settings

_SHARE = 3


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. All requests of one name share what the client gets; `weight` is against other clients."""

    name: str = ""
    weight: float = 1.0


ANONYMOUS = Client()
"""Who asks where clients aren't told apart."""


class Usage(NamedTuple):
    """What requests hold that are under way or waiting: their number, documents (once they are tokenized,
    inputs), tokens, and bytes of text."""

    requests: int = 0
    documents: int = 0
    tokens: int = 0
    size_bytes: int = 0

    def plus(self, other: Usage, sign: int = 1) -> Usage:
        return Usage(*(mine + sign * theirs for mine, theirs in zip(self, other, strict=True)))

    def minus(self, other: Usage) -> Usage:
        return self.plus(other, -1)


@dataclass(frozen=True, slots=True)
class QueueLimits:
    """What all requests under way and waiting may hold together."""

    requests: int
    documents: int
    tokens: int
    size_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> QueueLimits:
        """Those of the settings, for the queue of one model."""
        return cls(
            settings.max_requests,
            settings.max_queue_documents,
            settings.max_queue_tokens,
            settings.max_queue_bytes,
        )


class LimitReached(NamedTuple):
    """What is full, in words. `is_share`: not the whole, but what one client may hold. `over` is how much
    of the bound named `what` must become free."""

    words: str
    is_share: bool
    what: str
    over: int


class UsageByClient:
    """What is held by all requests together, and by those of each client."""

    def __init__(self) -> None:
        self.total = Usage()
        self._clients: dict[str, Usage] = {}

    def of(self, client: str) -> Usage:
        """What one client holds."""
        return self._clients.get(client, Usage())

    def change(self, client: str, less: Usage, more: Usage) -> None:
        """One client holds less, or more, or other than before."""
        self.total = self.total.minus(less).plus(more)
        self._clients[client] = self.of(client).minus(less).plus(more)
        if self._clients[client] == Usage():
            del self._clients[client]

    def limit_reached(
        self, limits: QueueLimits, client: str, less: Usage, more: Usage
    ) -> LimitReached | None:
        """What is full, if `more` can't be taken in place of `less`."""
        everyone, ours = self.total.minus(less), self.of(client).minus(less)
        for field in Usage._fields:
            adds, own, taken = getattr(more, field), getattr(ours, field), getattr(everyone, field)
            # One more, so that a bound of 1 lets one in.
            free = getattr(limits, field) - taken - adds + 1
            if not adds:
                continue
            if free <= 0:
                return LimitReached(_words(field, taken), False, field, 1 - free)
            if own + adds > _SHARE * free:
                return LimitReached(
                    _words(field, own), True, field, -(-(own + adds - _SHARE * free) // (_SHARE + 1))
                )
        return None


def _words(name: str, held: int) -> str:
    if name == "size_bytes":
        return f"{held / 2**20:.1f} MiB of text"
    return f"{held} {name}"
