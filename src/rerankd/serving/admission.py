"""(pure) Who is let into the queue of a model: bounds on all requests together, and a share per client.

A client may hold at most 3 times what it leaves free. So one client alone gets 3/4 of a bound, and n clients
that take all they can get 3 / (3n + 1) each: 1 / (3n + 1) stays free for the next one. Nothing has to be set
or known of how many clients there are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rerankd.config import Settings

_SHARE = 3


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks. All requests of one name share what the client gets; `weight` is against other clients."""

    name: str = ""
    weight: float = 1.0


NOBODY = Client()
"""Who asks where clients aren't told apart."""


@dataclass(slots=True)
class Held:
    """What requests hold that are under way or waiting: their number, documents (once they are tokenized,
    inputs), tokens, and bytes of text."""

    requests: int = 0
    documents: int = 0
    tokens: int = 0
    size_bytes: int = 0

    def add(self, other: Held) -> None:
        self.requests += other.requests
        self.documents += other.documents
        self.tokens += other.tokens
        self.size_bytes += other.size_bytes

    def remove(self, other: Held) -> None:
        self.requests -= other.requests
        self.documents -= other.documents
        self.tokens -= other.tokens
        self.size_bytes -= other.size_bytes


@dataclass(frozen=True, slots=True)
class Bounds:
    """What all requests under way and waiting may hold together."""

    requests: int
    documents: int
    tokens: int
    size_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> Bounds:
        """Those of the settings, for the queue of one model."""
        return cls(
            settings.max_requests,
            settings.max_queue_documents,
            settings.max_queue_tokens,
            settings.max_queue_bytes,
        )


class Full(NamedTuple):
    """What is full, in words. `is_share`: not the whole, but what one client may hold. `over` is how much
    of the bound named `what` must become free."""

    words: str
    is_share: bool
    what: str
    over: int


def full(bounds: Bounds, total: Held, client: Held, more: Held) -> Full | None:
    """What is full, if `more` can't be taken beside what all (`total`) and this client hold."""
    for field in fields(Bounds):
        bound, adds = getattr(bounds, field.name), getattr(more, field.name)
        all_of_them, own = getattr(total, field.name), getattr(client, field.name)
        if not adds:
            continue
        over = all_of_them + adds - bound
        if over > 0:
            return Full(_words(field.name, all_of_them), False, field.name, over)
        # One more, so that a bound of 1 lets one in.
        free = bound - all_of_them - adds + 1
        if own + adds > _SHARE * free:
            over = own + adds - _SHARE * free
            return Full(_words(field.name, own), True, field.name, -(-over // (_SHARE + 1)))
    return None


def _words(name: str, held: int) -> str:
    if name == "size_bytes":
        return f"{held / 2**20:.1f} MiB of text"
    return f"{held} {name}"
